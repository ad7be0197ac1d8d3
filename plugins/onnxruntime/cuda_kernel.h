// One node's kernel for CUDAExecutionProvider: the launcher that the TensorRT plugin has too.
#pragma once

#include <onnxruntime_cxx_api.h>

#include "node.h"

namespace pom::onnxruntime {

class CudaKernel {
 public:
  static constexpr const char* kProvider = "CUDAExecutionProvider";

  // Throws InvalidNode where the node is not one of the contract's.
  CudaKernel(const OpSignature& signature, const Ort::ConstKernelInfo& info) : node_(signature, info) {}

  // Enqueues on the session's stream.
  void compute(OrtKernelContext* raw) const;

  // What Ort::CustomOpBase calls.
  OrtStatus* ComputeV2(OrtKernelContext* context) const noexcept;

 private:
  const Node node_;
};

}  // namespace pom::onnxruntime
