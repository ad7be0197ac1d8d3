// Which kernel this machine runs.
#pragma once

#include <string>

#include "kernel.h"

namespace pom::cpu {

struct Dispatch {
  const Kernel* kernel = nullptr;
  std::string error;  // empty, or one line and kernel is null
};

// The fastest kernel that the processor can run, or the one that the environment variable POM_CPU_KERNEL names.
[[nodiscard]] Dispatch dispatch();

}  // namespace pom::cpu
