// x86-64 with AVX2, FMA and F16C. Compiled with those flags: include nothing that emits inline functions (kernel.h).
#include "vectors/avx2.h"

#include "functions.h"

namespace pom::cpu {

constexpr Kernel kAvx2Kernel = kernel_of<Avx2>("avx2");

}  // namespace pom::cpu
