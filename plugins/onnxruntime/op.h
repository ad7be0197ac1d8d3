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
// and takes a kernel of it from each provider. It keeps pointers: an op stays where it was made.
template <typename Kernel>
struct AggregationOp : Ort::CustomOpBase<AggregationOp<Kernel>, Kernel, true> {
  explicit AggregationOp(const OpSignature& op_signature) : signature(op_signature) {
    // In place of CustomOpBase's, which lets exceptions pass through C.
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
