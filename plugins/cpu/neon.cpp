// AArch64: all of these processors have these instructions.
#include "functions.h"
#include "vectors/neon.h"

namespace pom::cpu {

constexpr Kernel kNeonKernel = kernel_of<Neon>("neon");

}  // namespace pom::cpu
