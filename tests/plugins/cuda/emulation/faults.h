// Makes allocations fail when a test wants it, and counts live ones: AddressSanitizer's leak checker needs permissions
// that a test may not have.
#pragma once

#include <cstdint>

namespace pom::test::faults {

// Lets all allocations from this number on fail, counted from now on in a plugin's functions; -1: none.
void fail_allocation(int32_t number);
[[nodiscard]] bool allocation_failed();

[[nodiscard]] int64_t live_allocations();

// Exists while a plugin's function runs.
class InsideEntry {
 public:
  InsideEntry();
  ~InsideEntry();
  InsideEntry(const InsideEntry&) = delete;
  InsideEntry& operator=(const InsideEntry&) = delete;
};

}  // namespace pom::test::faults
