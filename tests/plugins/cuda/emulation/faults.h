// Allocations that fail where a test wants it, and a count of those that live: AddressSanitizer's leak checker needs
// rights that a test may not have.
#pragma once

#include <cstdint>

namespace pom::test::faults {

// Let all allocations from this number on fail, of those that a plugin's entries make from now on; -1: none.
void fail_allocation(int32_t number);
[[nodiscard]] bool allocation_failed();

[[nodiscard]] int64_t live_allocations();

// Where a plugin's entry runs.
class InsideEntry {
 public:
  InsideEntry();
  ~InsideEntry();
  InsideEntry(const InsideEntry&) = delete;
  InsideEntry& operator=(const InsideEntry&) = delete;
};

}  // namespace pom::test::faults
