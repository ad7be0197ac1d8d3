#include "cuda_emulation.h"

#include <sanitizer/common_interface_defs.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

namespace pom::cuda::emulation {
namespace {

constexpr std::size_t kStackBytes = 64 * 1024;
constexpr std::size_t kMaxSharedBytes = 48 * 1024;  // what a kernel gets without asking for more
constexpr uint32_t kMaxThreads = 1024;
constexpr uint32_t kBlocksAtOnce = 3;
constexpr int32_t kMaxIdleTurns = 1000;

enum class State { kUnused, kReady, kAtBarrier, kWaiting, kEnded };

// Where a stack stopped, as saved by __builtin_setjmp: swapcontext would also make a system call for the signal mask.
using Place = std::array<void*, 5>;

// The address sanitizer follows fibers only if it is notified of each switch of stacks.
struct Fiber {
  Place place{};
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  State state = State::kUnused;
  int32_t barriers = 0;
};

struct Free {
  void operator()(float* memory) const { std::free(memory); }
};

struct Block {
  uint32_t number = 0;
  std::vector<Fiber> fibers;  // kept, since new stacks for every launch would take longer than the kernels
  std::unique_ptr<float[], Free> shared;
};

struct Scheduler {
  Place place{};
  const void* stack = nullptr;
  std::size_t stack_bytes = 0;
  Block* block = nullptr;
  Fiber* fiber = nullptr;
  const std::function<void()>* kernel = nullptr;
};

Scheduler scheduler;
Order current_order = Order::kForward;
std::mt19937 shuffling;
int32_t skipped_barrier = -1;
int32_t failing_call = -1;
int32_t calls = 0;
bool kernel_runs = false;
std::vector<Block> pool(kBlocksAtOnce);

__attribute__((noinline, no_sanitize("address"))) void jump(Place* from, Place* to) {
  if (__builtin_setjmp(from->data()) == 0) {
    __builtin_longjmp(to->data(), 1);
  }
}

__attribute__((noinline, no_sanitize("address"))) void jump(Place* from, const ucontext_t& to) {
  if (__builtin_setjmp(from->data()) == 0) {
    ucontext_t here;
    swapcontext(&here, &to);
  }
}

// Stops the running fiber in this state; it continues when it is resumed.
void stop(State state) {
  Fiber* fiber = scheduler.fiber;
  const uint3 thread = threadIdx;
  const uint3 block = blockIdx;
  fiber->state = state;
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, scheduler.stack, scheduler.stack_bytes);
  jump(&fiber->place, &scheduler.place);
  __sanitizer_finish_switch_fiber(fake_stack, &scheduler.stack, &scheduler.stack_bytes);
  threadIdx = thread;
  blockIdx = block;
}

// Runs one thread of a kernel after another, each starting when the previous one has ended and threadIdx and blockIdx
// are set again.
void fiber_main() {
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack, &scheduler.stack_bytes);
  for (;;) {
    (*scheduler.kernel)();
    scheduler.fiber->state = State::kEnded;
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, scheduler.stack, scheduler.stack_bytes);
    jump(&scheduler.fiber->place, &scheduler.place);
    __sanitizer_finish_switch_fiber(fake_stack, &scheduler.stack, &scheduler.stack_bytes);
  }
}

// Returns a context at the bottom of the fiber's stack, whatever ran there before.
ucontext_t anew(const Fiber& fiber) {
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack.get();
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, fiber_main, 0);
  return context;
}

// Runs a fiber until it stops.
void resume(Fiber* fiber) {
  void* fake_stack = nullptr;
  const bool unused = fiber->state == State::kUnused;
  scheduler.fiber = fiber;
  __sanitizer_start_switch_fiber(&fake_stack, fiber->stack.get(), kStackBytes);
  if (unused) {
    jump(&scheduler.place, anew(*fiber));
  } else {
    jump(&scheduler.place, &fiber->place);
  }
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

// A fiber that was stopped in the middle of a kernel that failed cannot continue with the next one.
void start(Fiber* fiber) {
  fiber->state = fiber->state == State::kEnded ? State::kReady : State::kUnused;
  fiber->barriers = 0;
}

std::vector<uint32_t> ordered(std::size_t count) {
  std::vector<uint32_t> indices(count);
  std::iota(indices.begin(), indices.end(), 0U);
  if (current_order == Order::kShuffled) {
    std::shuffle(indices.begin(), indices.end(), shuffling);
  }
  return indices;
}

void start(Block* block, uint32_t number, uint32_t threads, std::size_t shared_bytes) {
  block->number = number;
  block->fibers.resize(threads);
  block->shared.reset(static_cast<float*>(std::malloc(shared_bytes)));  // not counted as a live allocation
  std::fill_n(block->shared.get(), shared_bytes / sizeof(float), std::numeric_limits<float>::quiet_NaN());
  std::for_each(block->fibers.begin(), block->fibers.end(), [](Fiber& fiber) { start(&fiber); });
}

bool all_are(const Block& block, State state) {
  return std::all_of(block.fibers.begin(), block.fibers.end(),
                     [&](const Fiber& fiber) { return fiber.state == state; });
}

// Runs each of a block's threads until it stops. False: some wait at a barrier, and others have ended.
bool take_turn(Block* block, bool* moved) {
  scheduler.block = block;
  blockIdx = {block->number, 0, 0};
  for (const uint32_t thread : ordered(block->fibers.size())) {
    Fiber& fiber = block->fibers[thread];
    if (fiber.state != State::kAtBarrier && fiber.state != State::kEnded) {
      threadIdx = {thread, 0, 0};
      resume(&fiber);
      *moved |= fiber.state != State::kWaiting;
    }
  }
  if (all_are(*block, State::kAtBarrier)) {
    std::for_each(block->fibers.begin(), block->fibers.end(), [](Fiber& fiber) { fiber.state = State::kReady; });
    return true;
  }
  const auto is = [&](State state) {
    return std::any_of(block->fibers.begin(), block->fibers.end(), [&](const Fiber& f) { return f.state == state; });
  };
  return !is(State::kAtBarrier) || !is(State::kEnded);
}

cudaError_t run(uint32_t blocks, uint32_t threads, std::size_t shared_bytes) {
  const std::vector<uint32_t> order = ordered(blocks);
  std::size_t started = 0;
  std::vector<Block*> running;
  std::vector<Block*> idle;
  std::for_each(pool.begin(), pool.end(), [&](Block& block) { idle.push_back(&block); });
  for (int32_t idle_turns = 0; started < order.size() || !running.empty();) {
    while (!idle.empty() && started < order.size()) {
      start(idle.back(), order[started++], threads, shared_bytes);
      running.push_back(idle.back());
      idle.pop_back();
    }
    bool moved = false;
    for (const uint32_t i : ordered(running.size())) {
      if (!take_turn(running[i], &moved)) {
        return cudaErrorLaunchFailure;
      }
    }
    const auto ended = std::stable_partition(running.begin(), running.end(),
                                             [](const Block* block) { return !all_are(*block, State::kEnded); });
    idle.insert(idle.end(), ended, running.end());
    running.erase(ended, running.end());
    idle_turns = moved ? 0 : idle_turns + 1;
    if (idle_turns > kMaxIdleTurns) {
      return cudaErrorLaunchTimeout;
    }
  }
  return cudaSuccess;
}

}  // namespace

void set_order(Order order) {
  current_order = order;
  shuffling.seed(7);
}

void skip_barrier(int32_t barrier) { skipped_barrier = barrier; }

void fail_call(int32_t number) {
  failing_call = number;
  calls = 0;
}

bool call_failed() { return failing_call >= 0 && calls > failing_call; }

bool is_running() { return kernel_runs; }

float* shared_memory() { return scheduler.block->shared.get(); }

void wait_a_little() { stop(State::kWaiting); }

cudaError_t launch(const std::function<void()>& kernel, uint32_t blocks, uint32_t threads, std::size_t shared_bytes,
                   cudaStream_t) {
  if (threads > kMaxThreads || shared_bytes > kMaxSharedBytes) {
    return cudaErrorInvalidValue;
  }
  if (calls++ == failing_call) {
    return cudaErrorLaunchOutOfResources;
  }
  scheduler.kernel = &kernel;
  kernel_runs = true;
  const cudaError_t status = run(blocks, threads, shared_bytes);
  kernel_runs = false;
  return status;
}

}  // namespace pom::cuda::emulation

void __syncthreads() {
  using namespace pom::cuda::emulation;  // NOLINT
  if (scheduler.fiber->barriers++ != skipped_barrier) {
    stop(State::kAtBarrier);
  }
}

cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t) {
  using namespace pom::cuda::emulation;  // NOLINT
  if (calls++ == failing_call) {
    return cudaErrorLaunchOutOfResources;
  }
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t) {
  using namespace pom::cuda::emulation;  // NOLINT
  if (calls++ == failing_call) {
    return cudaErrorLaunchOutOfResources;
  }
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

const char* cudaGetErrorName(cudaError_t status) {
  return status == cudaErrorLaunchOutOfResources ? "cudaErrorLaunchOutOfResources" : "an error of the double";
}

const char* cudaGetErrorString(cudaError_t) { return "the double was asked to fail"; }
