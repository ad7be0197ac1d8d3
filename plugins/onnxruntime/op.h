// What ONNX Runtime asks about an op: its name, inputs, outputs and shape inference.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <memory>

#include "signature.h"
#include "status.h"

namespace pom::onnxruntime {

// Writes what is known of the output's type and shape.
void infer_shape(const OpSignature& signature, const OrtApi& api, OrtShapeInferContext* context);

// Every input, and y, is of undefined type, which ONNX Runtime takes for any tensor type: the kernel checks them, with
// an error that says which types are meant.
//
// Kernel: CpuKernel or CudaKernel, which names the execution provider that it is for. ONNX Runtime has one op of a name
// and takes a kernel of it from each provider.
template <const OpSignature& kSignature, typename Kernel>
struct AggregationOp : Ort::CustomOpBase<AggregationOp<kSignature, Kernel>, Kernel, true> {
  AggregationOp() {
    // In place of CustomOpBase's, which lets exceptions pass through C.
    OrtCustomOp::InferOutputShapeFn = [](const OrtCustomOp*, OrtShapeInferContext* context) {
      const OrtApi& api = Ort::GetApi();
      return status_of(api, kSignature.name, [&] { infer_shape(kSignature, api, context); });
    };
  }

  OrtStatus* CreateKernelV2(const OrtApi& api, const OrtKernelInfo* info, void** kernel) const noexcept {
    return status_of(api, kSignature.name,
                     [&] { *kernel = std::make_unique<Kernel>(kSignature, Ort::ConstKernelInfo(info)).release(); });
  }
  [[nodiscard]] const char* GetName() const { return kSignature.name; }
  [[nodiscard]] const char* GetExecutionProviderType() const { return Kernel::kProvider; }
  [[nodiscard]] size_t GetInputTypeCount() const { return kSignature.inputs; }
  [[nodiscard]] ONNXTensorElementDataType GetInputType(size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED; }
  [[nodiscard]] OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
    return index < kSignature.required_inputs ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
  }
  [[nodiscard]] size_t GetOutputTypeCount() const { return kOutputs.size(); }
  [[nodiscard]] OrtCustomOpInputOutputCharacteristic GetOutputCharacteristic(size_t index) const {
    return index == kY ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
  }
  [[nodiscard]] ONNXTensorElementDataType GetOutputType(size_t index) const {
    constexpr ONNXTensorElementDataType kTypes[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED,
                                                    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                                    ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64};
    return kTypes[index];
  }
};

}  // namespace pom::onnxruntime
