// The fallback: one lane, in plain C++, for any processor.
#include "functions.h"
#include "vectors/scalar.h"

namespace pom::cpu {

constexpr Kernel kScalarKernel = kernel_of<Scalar>("scalar");

}  // namespace pom::cpu
