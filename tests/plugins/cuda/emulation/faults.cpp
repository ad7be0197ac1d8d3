#include "faults.h"

#include <cstdlib>
#include <new>

#include "cuda_emulation.h"

namespace pom::test::faults {
namespace {

int32_t failing = -1;
int32_t made = 0;
int64_t live = 0;
bool failed = false;
bool inside_entry = false;

void* allocate_or_null(std::size_t bytes) noexcept {
  if (inside_entry && !cuda::emulation::is_running() && failing >= 0 && made++ >= failing) {
    failed = true;
    return nullptr;
  }
  void* memory = std::malloc(bytes);
  live += memory != nullptr ? 1 : 0;
  return memory;
}

void* allocate(std::size_t bytes) {
  void* memory = allocate_or_null(bytes);
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  return memory;
}

void release(void* memory) noexcept {
  live -= memory != nullptr ? 1 : 0;
  std::free(memory);
}

}  // namespace

void fail_allocation(int32_t number) {
  failing = number;
  made = 0;
  failed = false;
}

bool allocation_failed() { return failed; }

int64_t live_allocations() { return live; }

InsideEntry::InsideEntry() { inside_entry = true; }
InsideEntry::~InsideEntry() { inside_entry = false; }

}  // namespace pom::test::faults

void* operator new(std::size_t bytes) { return pom::test::faults::allocate(bytes); }
void* operator new[](std::size_t bytes) { return pom::test::faults::allocate(bytes); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return pom::test::faults::allocate_or_null(bytes);
}
void operator delete(void* memory) noexcept { pom::test::faults::release(memory); }
void operator delete[](void* memory) noexcept { pom::test::faults::release(memory); }
void operator delete(void* memory, std::size_t) noexcept { pom::test::faults::release(memory); }
void operator delete[](void* memory, std::size_t) noexcept { pom::test::faults::release(memory); }
