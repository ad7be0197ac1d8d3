// What every kernel takes, and the launchers that aggregate() is made of.
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

// workspace[batch][chunk][channel] = sum of the chunk's weighted features, and behind the channels that of its weights.
// A single chunk's mean goes where write_means puts it.
[[nodiscard]] cudaError_t sum_chunks(const Call& call, cudaStream_t stream);

// The means, from what sum_chunks left in the workspace: to the output, or to `means` where there is a gate.
[[nodiscard]] cudaError_t write_means(const Call& call, cudaStream_t stream);

// The output from `means`.
[[nodiscard]] cudaError_t gate_means(const Call& call, cudaStream_t stream);

// The running means, and the gate over them.
[[nodiscard]] cudaError_t write_causal(const Call& call, cudaStream_t stream);

[[nodiscard]] cudaError_t write_features(const Call& call, cudaStream_t stream);

}  // namespace pom::cuda
