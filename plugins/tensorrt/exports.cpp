// What TensorRT looks for in a plugin library. Everything else is hidden, see exports.map.
#include <NvInferRuntime.h>

#include <algorithm>

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

// For hosts that only open a plugin library, such as ONNX Runtime's TensorRT provider: puts the creators into the
// registry of the TensorRT 10 that the process uses. False where it did not take one.
extern "C" POM_EXPORT bool pom_register_creators(nvinfer1::IPluginRegistry* registry) {
  int32_t count = 0;
  nvinfer1::IPluginCreatorInterface* const* creators = getCreators(count);
  return registry != nullptr && std::all_of(creators, creators + count, [&](auto* creator) {
           const auto* one = static_cast<nvinfer1::IPluginCreatorV3One*>(creator);
           const auto* there = registry->getCreator(one->getPluginName(), pom::kPluginVersion, pom::kPluginNamespace);
           return there != nullptr || registry->registerCreator(*creator, pom::kPluginNamespace);
         });
}
