// The only place that launches kernels.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <limits>

#include "call.h"

#if !defined(__CUDACC__)
#include "cuda_emulation.h"  // the tests' double: blocks and threads on the CPU
#endif

namespace pom::cuda {

using Kernel = void (*)(Call);

// The block's dynamic shared memory.
__device__ __forceinline__ float* shared_memory() {
#if defined(__CUDACC__)
  extern __shared__ float shared[];
  return shared;
#else
  return emulation::shared_memory();
#endif
}

// The shared memory of a tile, after the tickets.
__device__ __forceinline__ float* tile_memory() { return shared_memory() + kTicketFloats; }

inline cudaError_t launch(Kernel kernel, const Call& call, int64_t blocks, std::size_t shared, cudaStream_t stream) {
  if (blocks == 0) {
    return cudaSuccess;
  }
  if (blocks > std::numeric_limits<int32_t>::max()) {
    return cudaErrorInvalidConfiguration;
  }
  const dim3 grid(static_cast<uint32_t>(blocks));
#if defined(__CUDACC__)
  Call argument = call;
  void* arguments[] = {&argument};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, dim3(kThreads), arguments, shared, stream);
#else
  return emulation::launch([&] { kernel(call); }, grid.x, kThreads, shared, stream);
#endif
}

}  // namespace pom::cuda
