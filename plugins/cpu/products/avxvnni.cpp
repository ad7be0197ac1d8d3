// x86-64 with AVX2, FMA, F16C and AVX-VNNI. Compiled with those flags: include nothing that emits inline functions
// (kernel.h).
#include "avx2.h"

namespace pom::cpu {
namespace {

struct AvxVnni : Avx2Integers, StepByParts<AvxVnni> {
  static constexpr int kRows = 4;
  static constexpr int kChains = 4;

  // The first operand of the dot product has no sign.
  static constexpr bool kSigned = false;
  static Bytes whole(Bytes bytes) { return bytes; }

  static Sum dot(Sum sum, Bytes bytes, __m256i inputs) { return _mm256_dpbusd_avx_epi32(sum, bytes, inputs); }
};

}  // namespace

constexpr ProductKernel kAvxVnniProducts = products_of<AvxVnni>("avxvnni");

}  // namespace pom::cpu
