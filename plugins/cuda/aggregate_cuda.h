// The op's CUDA implementation: raw device pointers and a stream in, a status out.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "pom/aggregate.h"

namespace pom::cuda {

// Device pointers of one call; those of inputs that the problem does not have are null. `workspace` holds
// workspace_bytes() and is aligned to a float.
struct Buffers {
  const void* x = nullptr;
  const void* coefficients = nullptr;
  const void* mask = nullptr;
  const void* cos = nullptr;
  const void* sin = nullptr;
  void* y = nullptr;
  void* workspace = nullptr;
};

// An upper bound that shrinks with no dimension: the workspace of the largest shapes serves all smaller ones.
[[nodiscard]] std::size_t workspace_bytes(const Problem& problem);

// Enqueue the op for a problem that pom::validate accepts. Same inputs, same bits: sums have a fixed order.
[[nodiscard]] cudaError_t aggregate(const Problem& problem, const Buffers& buffers, cudaStream_t stream);

}  // namespace pom::cuda
