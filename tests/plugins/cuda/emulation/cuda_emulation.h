// A test double of the parts of CUDA that the kernels in plugins/cuda use, so that g++ compiles the same sources and a
// CPU runs them: a few blocks at a time, with all threads as fibers that switch at __syncthreads() and when one waits
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

// The order in which blocks run, and a block's threads between two barriers. A correct kernel gives the same bits in
// both. kShuffled uses another order each time, so that a block may be ahead of one that started before it.
enum class Order { kForward, kShuffled };
void set_order(Order order);

// Lets the threads run past the barrier with this number in every kernel, as if it were missing; -1: none.
void skip_barrier(int32_t barrier);

// Lets the CUDA call with this number, counted from now on, fail with cudaErrorLaunchOutOfResources; -1: none.
void fail_call(int32_t number);
[[nodiscard]] bool call_failed();

// Whether a kernel is running: allocations made then are the double's own.
[[nodiscard]] bool is_running();

// Returns cudaErrorLaunchFailure if some threads of a block wait at a barrier and others have ended,
// cudaErrorLaunchTimeout if all wait for each other, and cudaErrorInvalidValue for more threads or shared memory than a
// GPU has.
cudaError_t launch(const std::function<void()>& kernel, uint32_t blocks, uint32_t threads, std::size_t shared_bytes,
                   cudaStream_t stream);

// The running block's dynamic shared memory, which starts as NaN and has exactly the size given at the launch.
float* shared_memory();

// Access to words that blocks pass to each other.
inline unsigned long long load_word(const unsigned long long* word) { return *word; }
inline void store_word(unsigned long long* word, unsigned long long value) { *word = value; }
void wait_a_little();

}  // namespace pom::cuda::emulation
