// What ONNX Runtime asks about the op: its name, inputs, outputs and shape inference.
#pragma once

#include <onnxruntime_cxx_api.h>

#include "node_kernel.h"

namespace pom::onnxruntime {

// Every input and output is of undefined type, which ONNX Runtime takes for any tensor type: the kernel checks them,
// with an error that says which types are meant.
struct PolynomialAggregationOp : Ort::CustomOpBase<PolynomialAggregationOp, NodeKernel, true> {
  PolynomialAggregationOp();

  OrtStatus* CreateKernelV2(const OrtApi& api, const OrtKernelInfo* info, void** kernel) const noexcept;
  [[nodiscard]] const char* GetName() const { return kOpName; }
  [[nodiscard]] size_t GetInputTypeCount() const { return kInputs.size(); }
  [[nodiscard]] ONNXTensorElementDataType GetInputType(size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED; }
  [[nodiscard]] OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
    return index < kRequiredInputs ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
  }
  [[nodiscard]] size_t GetOutputTypeCount() const { return kOutputs.size(); }
  [[nodiscard]] ONNXTensorElementDataType GetOutputType(size_t) const {
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  }
};

}  // namespace pom::onnxruntime
