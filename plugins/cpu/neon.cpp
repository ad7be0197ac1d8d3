// AArch64: all of these processors have these instructions.
#include "vectors/neon.h"

#include "functions.h"

namespace pom::cpu {

constexpr Kernel kNeonKernel = kernel_of<Neon>("neon");

}  // namespace pom::cpu
