// The ops' CUDA implementation: raw device pointers and a stream in, a status out.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <optional>

#include "pom/aggregate.h"
#include "pom/gate.h"

namespace pom::cuda {

// Device pointers of one call; those of inputs that the problem does not have are null. `workspace` holds
// workspace_bytes() and is aligned to 16 bytes.
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
  void* output = nullptr;  // y, or with a gate z
  float* present_state = nullptr;
  int64_t* present_length = nullptr;
  void* workspace = nullptr;
};

// Those of a call's inputs and outputs, which lie in the order of kInputs, or with a gate of kGatedInputs, and of
// kOutputs; what the problem does not have is not looked at.
[[nodiscard]] Buffers bind(const Problem& problem, bool has_gate, const void* const* inputs, void* const* outputs);

// An upper bound that shrinks with no dimension: the workspace of the largest shapes serves all smaller ones. Throws
// std::invalid_argument for sizes that the kernels do not count.
[[nodiscard]] std::size_t workspace_bytes(const Problem& problem, const std::optional<Gate>& gate);

// Enqueue the op for a problem that pom::validate accepts, or that pom::describe_gated does with its gate. Same inputs,
// same bits: sums have a fixed order. No output may share memory with an input: many blocks read the past, and one
// writes the present without waiting for the others.
[[nodiscard]] cudaError_t aggregate(const Problem& problem, const std::optional<Gate>& gate, const Buffers& buffers,
                                    cudaStream_t stream);

}  // namespace pom::cuda
