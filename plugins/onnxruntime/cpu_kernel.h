// A node's kernel on the CPU.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <memory>

#include "cpu/coefficients.h"
#include "cpu/kernel.h"
#include "node.h"

namespace pom::onnxruntime {

// The kernel that a session created now runs. Throws InvalidNode if there is none.
[[nodiscard]] const cpu::Kernel& dispatched_kernel();

class CpuKernel {
 public:
  static constexpr const char* kProvider = nullptr;  // ONNX Runtime's default, the CPU

  // Throws InvalidNode if the node violates the contract, or no kernel can run.
  CpuKernel(const OpSignature& signature, const Ort::ConstKernelInfo& info);

  void compute(const Ort::KernelContext& context) const;

  // Called by Ort::CustomOpBase.
  OrtStatus* ComputeV2(OrtKernelContext* context) const noexcept;

 private:
  void prepare_constants(const Ort::ConstKernelInfo& info);

  const Node node_;
  const cpu::Kernel& kernel_;
  // Created once if the node's input is constant; otherwise empty.
  cpu::Coefficients coefficients_;
  std::unique_ptr<float[]> gate_bias_;
};

}  // namespace pom::onnxruntime
