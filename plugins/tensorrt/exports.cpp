// What TensorRT looks for in a plugin library. Everything else is hidden, see exports.map.
#include <NvInferRuntime.h>

#include "creator.h"
#include "logger.h"

#define POM_EXPORT __attribute__((visibility("default")))

extern "C" POM_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  pom::tensorrt::set_logger_finder(finder);
}

extern "C" POM_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  using pom::tensorrt::Creator;
  using pom::tensorrt::Op;
  static Creator aggregation(Op::kAggregation);
  static Creator gated(Op::kGated);
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&aggregation, &gated};
  count = 2;
  return creators;
}
