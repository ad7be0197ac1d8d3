// What ONNX Runtime needs to know about an op: its name, inputs, outputs and shape inference.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <memory>

#include "signature.h"
#include "status.h"

namespace pom::onnxruntime {

// Sets the output's type and shape, as far as they are known.
void infer_shape(const OpSignature& signature, const OrtApi& api, OrtShapeInferContext* context);

// All inputs, and y, have an undefined type, which ONNX Runtime treats as any tensor type: the kernel checks them, with
// an error that lists the supported types.
//
// Kernel is CpuKernel or CudaKernel, which names its execution provider. ONNX Runtime has a single op of each name,
// with a kernel from each provider. It keeps pointers to an op, which must not move.
template <typename Kernel>
struct AggregationOp : Ort::CustomOpBase<AggregationOp<Kernel>, Kernel, true> {
  explicit AggregationOp(const OpSignature& op_signature) : signature(op_signature) {
    // Replaces CustomOpBase's function, which lets exceptions pass through C.
    OrtCustomOp::InferOutputShapeFn = [](const OrtCustomOp* op, OrtShapeInferContext* context) {
      const OpSignature& inferred = static_cast<const AggregationOp*>(op)->signature;
      const OrtApi& api = Ort::GetApi();
      return status_of(api, inferred.name, [&] { infer_shape(inferred, api, context); });
    };
  }

  OrtStatus* CreateKernelV2(const OrtApi& api, const OrtKernelInfo* info, void** kernel) const noexcept {
    return status_of(api, signature.name,
                     [&] { *kernel = std::make_unique<Kernel>(signature, Ort::ConstKernelInfo(info)).release(); });
  }
  [[nodiscard]] const char* GetName() const { return signature.name; }
  [[nodiscard]] const char* GetExecutionProviderType() const { return Kernel::kProvider; }
  [[nodiscard]] size_t GetInputTypeCount() const { return signature.inputs; }
  [[nodiscard]] ONNXTensorElementDataType GetInputType(size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED; }
  [[nodiscard]] OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
    return index < signature.required_inputs ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
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

  const OpSignature signature;  // kernels refer to it
};

}  // namespace pom::onnxruntime
