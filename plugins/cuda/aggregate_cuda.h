// The ops' CUDA implementation: raw device pointers and a stream in, a status out.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
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
  void* output = nullptr;  // y, or with a gate z
  void* workspace = nullptr;
};

// Those of a call's inputs, which lie in the order of kInputs, or with a gate of kGatedInputs; inputs that the problem
// does not have are not looked at.
[[nodiscard]] Buffers bind_inputs(const Problem& problem, bool has_gate, const void* const* inputs);

// Whether a call has no output, and so nothing to do.
[[nodiscard]] bool is_empty(const Problem& problem, const std::optional<Gate>& gate);

// An upper bound that shrinks with no dimension: the workspace of the largest shapes serves all smaller ones.
[[nodiscard]] std::size_t workspace_bytes(const Problem& problem, const std::optional<Gate>& gate);

// Enqueue the op for a problem that pom::validate accepts, or that pom::describe_gated does with its gate. Same inputs,
// same bits: sums have a fixed order.
[[nodiscard]] cudaError_t aggregate(const Problem& problem, const std::optional<Gate>& gate, const Buffers& buffers,
                                    cudaStream_t stream);

}  // namespace pom::cuda
