#include "cuda_emulation.h"

#include <sanitizer/common_interface_defs.h>
#include <ucontext.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

namespace pom::cuda::emulation {
namespace {

constexpr std::size_t kStackBytes = 64 * 1024;
constexpr std::size_t kMaxSharedBytes = 48 * 1024;  // what a kernel may have without asking for more
constexpr uint32_t kMaxThreads = 1024;

// The address sanitizer follows fibers only where it is told of each change of stack.
struct Fiber {
  ucontext_t context{};
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  bool ended = false;
  int32_t barriers = 0;
};

struct Scheduler {
  ucontext_t context{};
  const void* stack = nullptr;
  std::size_t stack_bytes = 0;
  Fiber* running = nullptr;
  const std::function<void()>* kernel = nullptr;
};

Scheduler scheduler;
Order current_order = Order::kForward;
int32_t skipped_barrier = -1;
std::vector<float> shared;
std::vector<Fiber> pool;  // kept, since new stacks for every launch would cost more than the kernels

void fiber_main() {
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack, &scheduler.stack_bytes);
  (*scheduler.kernel)();
  scheduler.running->ended = true;
  __sanitizer_start_switch_fiber(nullptr, scheduler.stack, scheduler.stack_bytes);
}

void start(Fiber* fiber) {
  fiber->ended = false;
  fiber->barriers = 0;
  getcontext(&fiber->context);
  fiber->context.uc_stack.ss_sp = fiber->stack.get();
  fiber->context.uc_stack.ss_size = kStackBytes;
  fiber->context.uc_link = &scheduler.context;
  makecontext(&fiber->context, fiber_main, 0);
}

// Run a fiber up to its next barrier or its end.
void resume(Fiber* fiber) {
  void* fake_stack = nullptr;
  scheduler.running = fiber;
  __sanitizer_start_switch_fiber(&fake_stack, fiber->stack.get(), kStackBytes);
  swapcontext(&scheduler.context, &fiber->context);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

void wait_at_barrier() {
  Fiber* fiber = scheduler.running;
  if (fiber->barriers++ == skipped_barrier) {
    return;
  }
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, scheduler.stack, scheduler.stack_bytes);
  swapcontext(&fiber->context, &scheduler.context);
  __sanitizer_finish_switch_fiber(fake_stack, &scheduler.stack, &scheduler.stack_bytes);
}

std::vector<uint32_t> ordered(uint32_t count) {
  std::vector<uint32_t> indices(count);
  std::iota(indices.begin(), indices.end(), 0U);
  if (current_order == Order::kReverse) {
    std::reverse(indices.begin(), indices.end());
  }
  return indices;
}

bool run_block() {
  const std::vector<uint32_t> order = ordered(static_cast<uint32_t>(pool.size()));
  std::for_each(pool.begin(), pool.end(), [](Fiber& fiber) { start(&fiber); });
  std::size_t ended = 0;
  while (ended == 0) {
    for (const uint32_t thread : order) {
      threadIdx = {thread, 0, 0};
      resume(&pool[thread]);
      ended += pool[thread].ended ? 1 : 0;
    }
  }
  return ended == pool.size();
}

}  // namespace

void set_order(Order order) { current_order = order; }

void skip_barrier(int32_t barrier) { skipped_barrier = barrier; }

float* shared_memory() { return shared.data(); }

cudaError_t launch(const std::function<void()>& kernel, uint32_t blocks, uint32_t threads, std::size_t shared_bytes,
                   cudaStream_t) {
  if (threads > kMaxThreads || shared_bytes > kMaxSharedBytes) {
    return cudaErrorInvalidValue;
  }
  scheduler.kernel = &kernel;
  pool.resize(threads);
  for (const uint32_t block : ordered(blocks)) {
    blockIdx = {block, 0, 0};
    shared = std::vector<float>(shared_bytes / sizeof(float), std::numeric_limits<float>::quiet_NaN());
    if (!run_block()) {
      return cudaErrorLaunchFailure;
    }
  }
  return cudaSuccess;
}

}  // namespace pom::cuda::emulation

void __syncthreads() {
  const uint3 thread = threadIdx;
  pom::cuda::emulation::wait_at_barrier();
  threadIdx = thread;
}
