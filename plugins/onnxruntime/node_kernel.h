// One node's kernel: what its attributes are, and what it does with a call's tensors.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <memory>

#include "cpu/coefficients.h"
#include "cpu/kernel.h"
#include "pom/aggregate.h"
#include "pom/gate.h"
#include "signature.h"

namespace pom::onnxruntime {

class NodeKernel {
 public:
  // Throws InvalidNode where the node is not one of the contract's, or no kernel can run.
  NodeKernel(const OpSignature& signature, const Ort::ConstKernelInfo& info);

  void compute(const Ort::KernelContext& context) const;

  // What Ort::CustomOpBase calls.
  OrtStatus* ComputeV2(OrtKernelContext* context) const noexcept;

 private:
  void check_types(const Ort::ConstKernelInfo& info) const;
  void prepare_constants(const Ort::ConstKernelInfo& info);

  const OpSignature& signature_;
  const Attributes attributes_;
  const GateActivation activation_;
  const cpu::Kernel& kernel_;
  // Made once where the node's input is constant; otherwise empty.
  cpu::Coefficients coefficients_;
  std::unique_ptr<float[]> gate_bias_;
};

}  // namespace pom::onnxruntime
