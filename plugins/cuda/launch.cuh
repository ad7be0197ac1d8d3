// The one place that starts kernels, and the choice of a kernel's template arguments.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
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

// Of a tile, behind the tickets.
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

template <typename T, int32_t Width>
struct Element {
  using Type = T;
  static constexpr int32_t kWidth = Width;
};

// Run `start` with the Element of x's type and the plan's width.
template <typename Start>
cudaError_t dispatch(const Call& call, Start start) {
  const bool vector = call.plan.width > 1;
  switch (call.problem.data_type) {
    case DataType::kFloat32:
      return vector ? start(Element<float, 4>{}) : start(Element<float, 1>{});
    case DataType::kFloat16:
      return vector ? start(Element<__half, 8>{}) : start(Element<__half, 1>{});
    case DataType::kBFloat16:
      return vector ? start(Element<__nv_bfloat16, 8>{}) : start(Element<__nv_bfloat16, 1>{});
    case DataType::kBool:
    case DataType::kInt64:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace pom::cuda
