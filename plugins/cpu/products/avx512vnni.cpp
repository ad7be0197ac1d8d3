// x86-64 with AVX-512 F, BW, DQ, VL and VNNI. Compiled with those flags: include nothing that emits inline functions
// (kernel.h).
#include "../vectors/avx512.h"
#include "functions.h"

namespace pom::cpu {
namespace {

struct Avx512Vnni : StepByParts<Avx512Vnni> {
  using Float = Avx512;
  using Bytes = __m512i;
  using Sum = __m512i;
  static constexpr int kRows = 6;
  static constexpr int kTiles = 2;
  static constexpr int kChains = 4;
  static constexpr int kFloatRows = 12;
  static constexpr int kFloatTiles = 2;

  static Bytes load(const uint8_t* from) { return _mm512_loadu_si512(from); }
  static Bytes low(Bytes both) { return _mm512_and_si512(both, _mm512_set1_epi8(0x0F)); }
  static Bytes high(Bytes both) { return low(_mm512_srli_epi16(both, 4)); }

  // The first operand of the dot product has no sign.
  static constexpr bool kSigned = false;
  static Bytes whole(Bytes bytes) { return bytes; }

  static __m512i inputs(const int8_t* from) {
    int32_t four;
    __builtin_memcpy(&four, from, sizeof four);
    return _mm512_set1_epi32(four);
  }
  static Sum dot(Sum sum, Bytes bytes, __m512i inputs) { return _mm512_dpbusd_epi32(sum, bytes, inputs); }

  static Sum start(int32_t number) { return _mm512_set1_epi32(number); }
  static Sum add(Sum a, Sum b) { return _mm512_add_epi32(a, b); }
  static Avx512 to_float(Sum sum) { return {_mm512_cvtepi32_ps(sum)}; }
  static float sum(Avx512 a) { return _mm512_reduce_add_ps(a.value); }
  static float largest(Avx512 a) { return _mm512_reduce_max_ps(a.value); }
  static void store_bytes(int8_t* to, Avx512 biased) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_castps_si512(biased.value)));
  }
};

}  // namespace

constexpr ProductKernel kAvx512VnniProducts = products_of<Avx512Vnni>("avx512vnni");

}  // namespace pom::cpu
