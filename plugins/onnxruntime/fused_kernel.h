// The kernel of FusedLayers: a program (plugins/cpu/program) with its constant inputs.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/coefficients.h"
#include "cpu/program/run.h"

namespace pom::onnxruntime {

// Node inputs that are (batch, tokens, width): values of the program that are not constant.
struct MatrixInput {
  int64_t value;
  int64_t width;
};

[[nodiscard]] std::vector<MatrixInput> matrix_inputs(const cpu::Program& program);

// Memory of ONNX Runtime's, which keeps it for the next call.
class Scratch {
 public:
  static constexpr size_t kAlignment = 64;

  // Throws std::bad_alloc.
  Scratch(OrtAllocator* allocator, size_t bytes);
  ~Scratch() { allocator_.Free(&allocator_, memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  [[nodiscard]] static size_t padded(int64_t bytes) {
    return (static_cast<size_t>(bytes) + kAlignment - 1) / kAlignment * kAlignment;
  }
  unsigned char* take(int64_t bytes);

 private:
  OrtAllocator& allocator_;
  void* const memory_;
  unsigned char* next_ = nullptr;
};

class FusedKernel {
 public:
  // Throws InvalidNode if the program or its constants are wrong, or no kernel can run.
  explicit FusedKernel(const Ort::ConstKernelInfo& info);

  void compute(const Ort::KernelContext& context) const;

  // Called by Ort::CustomOpBase.
  OrtStatus* ComputeV2(OrtKernelContext* context) const noexcept;

 private:
  // What an aggregation keeps from session creation on.
  struct Constants {
    cpu::Coefficients coefficients;
    std::unique_ptr<float[]> gate_bias;
  };
  struct Release {
    void operator()(OrtAllocator* allocator) const { Ort::GetApi().ReleaseAllocator(allocator); }
  };
  struct Extent {
    int64_t batch;
    int64_t tokens;
  };

  void prepare_aggregation(const cpu::Instruction& instruction, const Ort::ConstKernelInfo& info);
  [[nodiscard]] Extent sizes_of(const Ort::KernelContext& context) const;
  [[nodiscard]] cpu::AggregationCall describe(const cpu::Instruction& instruction, const Extent& sizes,
                                              const Ort::KernelContext& context) const;
  [[nodiscard]] cpu::Memory given_memory(const Extent& sizes, const Ort::KernelContext& context) const;
  [[nodiscard]] std::unique_ptr<Scratch> add_scratch(int64_t rows, cpu::Memory* memory) const;

  const cpu::Kernel& kernel_;
  const std::unique_ptr<OrtAllocator, Release> allocator_;  // of ONNX Runtime's arena
  const cpu::Program program_;
  const std::vector<MatrixInput> matrices_;
  std::vector<Constants> aggregations_;
};

}  // namespace pom::onnxruntime
