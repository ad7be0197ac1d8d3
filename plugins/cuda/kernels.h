// The kernels by the type of x, in several translation units so that they compile in parallel.
#pragma once

#include "call.h"

namespace pom::cuda {

struct Kernels {
  using Launcher = cudaError_t(const Call&, cudaStream_t);

  // workspace[batch][chunk][channel] = sum of the chunk's weighted features and, after the channels, that of its
  // weights. The mean of a single chunk is written where write_means would write it.
  Launcher* sum_chunks;
  // Computes the output from `means`.
  Launcher* gate_means;
  // Computes the running means, multiplied by the gate if there is one.
  Launcher* write_causal;
  Launcher* write_features;
};

// For packs of 16 bytes.
extern const Kernels kFloat32Kernels;
extern const Kernels kFloat16Kernels;
extern const Kernels kBFloat16Kernels;
// For single values of any of these types.
extern const Kernels kSingleKernels;

}  // namespace pom::cuda
