// The kernels by the type of x: in several translation units, so that they compile side by side.
#pragma once

#include "call.h"

namespace pom::cuda {

struct Kernels {
  using Launcher = cudaError_t(const Call&, cudaStream_t);

  // workspace[batch][chunk][channel] = sum of the chunk's weighted features, and behind the channels that of its
  // weights. A single chunk's mean goes where write_means puts it.
  Launcher* sum_chunks;
  // The output from `means`.
  Launcher* gate_means;
  // The running means, and the gate over them.
  Launcher* write_causal;
  Launcher* write_features;
};

// Packs of 16 bytes.
extern const Kernels kFloat32Kernels;
extern const Kernels kFloat16Kernels;
extern const Kernels kBFloat16Kernels;
// Single values, of any of these types.
extern const Kernels kSingleKernels;

}  // namespace pom::cuda
