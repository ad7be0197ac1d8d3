// One node's kernel: what its attributes are, and what it does with a call's tensors.
#pragma once

#include <onnxruntime_cxx_api.h>

#include "cpu/kernel.h"
#include "pom/aggregate.h"

namespace pom::onnxruntime {

class NodeKernel {
 public:
  // Throws InvalidNode where the node is not one of the contract's, or no kernel can run.
  explicit NodeKernel(Ort::ConstKernelInfo info);

  void compute(const Ort::KernelContext& context) const;

  // What Ort::CustomOpBase calls.
  OrtStatus* ComputeV2(OrtKernelContext* context) const noexcept;

 private:
  const Attributes attributes_;
  const cpu::Kernel& kernel_;
};

}  // namespace pom::onnxruntime
