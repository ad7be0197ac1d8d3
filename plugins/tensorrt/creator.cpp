#include "creator.h"

#include "fields.h"
#include "guard.h"
#include "plugin.h"

namespace pom::tensorrt {

nvinfer1::IPluginV3* PolynomialAggregationCreator::createPlugin(const char* name,
                                                                const nvinfer1::PluginFieldCollection* fields,
                                                                nvinfer1::TensorRTPhase) noexcept {
  return guarded<nvinfer1::IPluginV3*>(name == nullptr ? "createPlugin" : name, nullptr,
                                       [&] { return new PolynomialAggregationPlugin(read_fields(*fields)); });
}

const nvinfer1::PluginFieldCollection* PolynomialAggregationCreator::getFieldNames() noexcept {
  return guarded<const nvinfer1::PluginFieldCollection*>("getFieldNames", nullptr, [] { return field_names(); });
}

}  // namespace pom::tensorrt
