// The choice of the kernel for this machine.
#pragma once

#include <string>

#include "kernel.h"

namespace pom::cpu {

struct Dispatch {
  const Kernel* kernel = nullptr;
  std::string error;  // empty, or one line if kernel is null
};

// Returns the fastest kernel that the processor can run, or the one named in the environment variable POM_CPU_KERNEL.
[[nodiscard]] Dispatch dispatch();

}  // namespace pom::cpu
