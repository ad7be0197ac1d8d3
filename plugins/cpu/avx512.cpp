// x86-64 with AVX-512 F, BW, DQ and VL. Compiled with those flags: include nothing that emits inline functions
// (kernel.h).
#include "vectors/avx512.h"

#include "functions.h"

namespace pom::cpu {

constexpr Kernel kAvx512Kernel = kernel_of<Avx512>("avx512");

}  // namespace pom::cpu
