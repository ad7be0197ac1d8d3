// The arguments of every kernel, and the launcher of the kernel for all types of x.
#pragma once

#include <cuda_runtime_api.h>

#include "aggregate_cuda.h"
#include "plan.h"

namespace pom::cuda {

struct Call {
  Problem problem;
  Gate gate;
  Buffers buffers;  // that of the gate is null if there is none
  Plan plan;
  float* means = nullptr;  // mode mean with a gate: (batch, channels), unrounded until the gate is applied
};

// Writes the means from the sums that Kernels::sum_chunks left in the workspace: to the output, or to `means` if there
// is a gate.
[[nodiscard]] cudaError_t write_means(const Call& call, cudaStream_t stream);

}  // namespace pom::cuda
