// pom.runtime::FusedLayers, which a session has in place of several nodes of a file. No file has it.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <memory>

#include "fused_kernel.h"
#include "status.h"

namespace pom::onnxruntime {

inline constexpr char kRuntimeDomain[] = "pom.runtime";
inline constexpr char kFusedOpName[] = "FusedLayers";
inline constexpr char kProgram[] = "program";
inline constexpr char kConstants[] = "constants";

// Sets the outputs' types and sizes.
void infer_fused_shape(const OrtApi& api, OrtShapeInferContext* context);

struct FusedOp : Ort::CustomOpBase<FusedOp, FusedKernel, true> {
  FusedOp() {
    // Replaces CustomOpBase's function, which lets exceptions pass through C.
    OrtCustomOp::InferOutputShapeFn = [](const OrtCustomOp*, OrtShapeInferContext* context) {
      const OrtApi& api = Ort::GetApi();
      return status_of(api, kFusedOpName, [&] { infer_fused_shape(api, context); });
    };
  }

  OrtStatus* CreateKernelV2(const OrtApi& api, const OrtKernelInfo* info, void** kernel) const noexcept {
    return status_of(api, kFusedOpName,
                     [&] { *kernel = std::make_unique<FusedKernel>(Ort::ConstKernelInfo(info)).release(); });
  }
  [[nodiscard]] const char* GetName() const { return kFusedOpName; }
  [[nodiscard]] size_t GetInputTypeCount() const { return 1; }
  [[nodiscard]] ONNXTensorElementDataType GetInputType(size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED; }
  [[nodiscard]] OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t) const {
    return INPUT_OUTPUT_VARIADIC;
  }
  [[nodiscard]] size_t GetOutputTypeCount() const { return 1; }
  [[nodiscard]] ONNXTensorElementDataType GetOutputType(size_t) const {
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  }
  [[nodiscard]] OrtCustomOpInputOutputCharacteristic GetOutputCharacteristic(size_t) const {
    return INPUT_OUTPUT_VARIADIC;
  }
  [[nodiscard]] bool GetVariadicInputHomogeneity() const { return false; }
  [[nodiscard]] bool GetVariadicOutputHomogeneity() const { return false; }
};

}  // namespace pom::onnxruntime
