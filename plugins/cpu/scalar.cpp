// The fallback: one lane, in plain C++, for any processor.
#include "vectors/scalar.h"

#include "functions.h"

namespace pom::cpu {

constexpr Kernel kScalarKernel = kernel_of<Scalar>("scalar");

}  // namespace pom::cpu
