// A test double for what the kernels in plugins/cuda use of CUDA, so that g++ compiles those very sources and a CPU
// runs them: a few blocks at a time, the threads of all as fibers that change at __syncthreads() and where one waits
// for another block.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>

#define __launch_bounds__(...)

inline uint3 threadIdx{};
inline uint3 blockIdx{};

void __syncthreads();

inline uint32_t atomicAdd(uint32_t* address, uint32_t value) {
  const uint32_t old = *address;
  *address += value;
  return old;
}

namespace pom::cuda::emulation {

// The order in which blocks, and a block's threads between two barriers, run. A kernel that is right gives the same
// bits in both. kShuffled: another order at every turn, so that a block may be ahead of one that started before it.
enum class Order { kForward, kShuffled };
void set_order(Order order);

// Let the threads run past the barrier of this number in every kernel, as if it had been forgotten; -1: none.
void skip_barrier(int32_t barrier);

// Let the CUDA call of this number, of those made from now on, fail with cudaErrorLaunchOutOfResources; -1: none.
void fail_call(int32_t number);
[[nodiscard]] bool call_failed();

// Whether a kernel runs: what is allocated then is the double's own.
[[nodiscard]] bool is_running();

// cudaErrorLaunchFailure where some threads of a block wait at a barrier and others have ended, cudaErrorLaunchTimeout
// where all wait for each other, cudaErrorInvalidValue for more threads or shared memory than a GPU gives.
cudaError_t launch(const std::function<void()>& kernel, uint32_t blocks, uint32_t threads, std::size_t shared_bytes,
                   cudaStream_t stream);

// The running block's dynamic shared memory. It starts as NaN, and ends where the launch said.
float* shared_memory();

// Words that blocks hand to each other.
inline unsigned long long load_word(const unsigned long long* word) { return *word; }
inline void store_word(unsigned long long* word, unsigned long long value) { *word = value; }
void wait_a_little();

}  // namespace pom::cuda::emulation
