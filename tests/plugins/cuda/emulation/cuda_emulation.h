// A test double for what the kernels in plugins/cuda use of CUDA, so that g++ compiles those very sources and a CPU
// runs them: blocks one after another, the threads of a block as fibers that change at __syncthreads().
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>

#define __launch_bounds__(...)

inline uint3 threadIdx{};
inline uint3 blockIdx{};

void __syncthreads();

namespace pom::cuda::emulation {

// The order in which blocks, and a block's threads between two barriers, run. A kernel that is right gives the same
// bits in both.
enum class Order { kForward, kReverse };
void set_order(Order order);

// Let the threads run past the barrier of this number in every kernel, as if it had been forgotten; -1: none.
void skip_barrier(int32_t barrier);

// cudaErrorLaunchFailure where some threads of a block wait at a barrier and others have ended, cudaErrorInvalidValue
// for more threads or shared memory than a GPU gives.
cudaError_t launch(const std::function<void()>& kernel, uint32_t blocks, uint32_t threads, std::size_t shared_bytes,
                   cudaStream_t stream);

// The running block's dynamic shared memory. It starts as NaN, and ends where the launch said.
float* shared_memory();

}  // namespace pom::cuda::emulation
