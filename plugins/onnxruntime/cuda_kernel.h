// A node's kernel for CUDAExecutionProvider, with the same launcher as the TensorRT plugin.
#pragma once

#include <onnxruntime_cxx_api.h>

#include "node.h"

namespace pom::onnxruntime {

class CudaKernel {
 public:
  static constexpr const char* kProvider = "CUDAExecutionProvider";

  // Throws InvalidNode if the node violates the contract.
  CudaKernel(const OpSignature& signature, const Ort::ConstKernelInfo& info) : node_(signature, info) {}

  // Enqueues on the session's stream.
  void compute(OrtKernelContext* raw) const;

  // Called by Ort::CustomOpBase.
  OrtStatus* ComputeV2(OrtKernelContext* context) const noexcept;

 private:
  const Node node_;
};

}  // namespace pom::onnxruntime
