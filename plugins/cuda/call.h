// What every kernel takes, and the launcher of the one that serves all types of x.
#pragma once

#include <cuda_runtime_api.h>

#include "aggregate_cuda.h"
#include "plan.h"

namespace pom::cuda {

struct Call {
  Problem problem;
  Gate gate;
  Buffers buffers;  // that of gate is null where there is none
  Plan plan;
  float* means = nullptr;  // mode mean with a gate: (batch, channels), not rounded before the gate is applied
};

// The means, from what Kernels::sum_chunks left in the workspace: to the output, or to `means` where there is a gate.
[[nodiscard]] cudaError_t write_means(const Call& call, cudaStream_t stream);

}  // namespace pom::cuda
