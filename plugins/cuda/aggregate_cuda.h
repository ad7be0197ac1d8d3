// The ops' CUDA implementation: takes raw device pointers and a stream, and returns a status.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <optional>

#include "pom/aggregate.h"
#include "pom/gate.h"

namespace pom::cuda {

// Device pointers of one call; null for inputs that the problem does not have. `workspace` has workspace_bytes() bytes,
// aligned to 16.
struct Buffers {
  const void* x = nullptr;
  const void* gate = nullptr;
  const void* gate_bias = nullptr;
  const void* coefficients = nullptr;
  const void* mask = nullptr;
  const void* cos = nullptr;
  const void* sin = nullptr;
  const float* past_state = nullptr;
  const int64_t* past_length = nullptr;
  void* output = nullptr;  // y, or z with a gate
  float* present_state = nullptr;
  int64_t* present_length = nullptr;
  void* workspace = nullptr;
};

// The buffers of a call, whose inputs are in the order of kInputs, or kGatedInputs with a gate, and whose outputs are
// in the order of kOutputs. Pointers that the problem does not have are ignored.
[[nodiscard]] Buffers bind(const Problem& problem, bool has_gate, const void* const* inputs, void* const* outputs);

// An upper bound that does not shrink when a dimension grows, so that the workspace of the largest shapes is enough for
// all smaller ones. Throws std::invalid_argument for sizes that the kernels cannot count.
[[nodiscard]] std::size_t workspace_bytes(const Problem& problem, const std::optional<Gate>& gate);

// Enqueues the op for a problem that pom::validate accepts, or pom::describe_gated with its gate. The same inputs give
// the same bits, since sums have a fixed order. No output may share memory with an input: many blocks read the past,
// and one writes the present without waiting for the others.
[[nodiscard]] cudaError_t aggregate(const Problem& problem, const std::optional<Gate>& gate, const Buffers& buffers,
                                    cudaStream_t stream);

}  // namespace pom::cuda
