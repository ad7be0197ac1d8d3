#include "creator.h"

#include "fields.h"
#include "guard.h"
#include "plugin.h"

namespace pom::tensorrt {

nvinfer1::IPluginV3* Creator::createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                           nvinfer1::TensorRTPhase) noexcept {
  return guarded<nvinfer1::IPluginV3*>(name_, name == nullptr ? "createPlugin" : name, nullptr,
                                       [&] { return new Plugin(name_, read_fields(op_, fields)); });
}

const nvinfer1::PluginFieldCollection* Creator::getFieldNames() noexcept {
  return guarded<const nvinfer1::PluginFieldCollection*>(name_, "getFieldNames", nullptr,
                                                         [&] { return field_names(op_); });
}

}  // namespace pom::tensorrt
