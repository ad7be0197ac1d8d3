// Creates plugins of one name from an ONNX node's attributes (build) or a serialized engine's fields (runtime).
#pragma once

#include <NvInferRuntime.h>

#include "op.h"

namespace pom::tensorrt {

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  Creator(Op op, const char* name) : op_(op), name_(name) {}

  // Returns null, and logs one line, for fields that the op does not define.
  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override;
  const char* getPluginName() const noexcept override { return name_; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }

 private:
  Op op_;
  const char* name_;  // one of names_of(op_)
};

}  // namespace pom::tensorrt
