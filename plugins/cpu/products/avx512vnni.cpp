// x86-64 with AVX-512 F, BW, DQ, VL and VNNI. Compiled with those flags: include nothing that emits inline functions
// (kernel.h).
#include "../vectors/avx512.h"

#include "functions.h"

namespace pom::cpu {
namespace {

struct Avx512Vnni {
  using Float = Avx512;
  using Bytes = __m512i;
  using Sum = __m512i;
  static constexpr int kRows = 6;
  static constexpr int kTiles = 2;
  static constexpr int kChains = 4;
  static constexpr int kFloatRows = 12;
  static constexpr int kFloatTiles = 2;

  static Bytes load(const uint8_t* from) { return _mm512_loadu_si512(from); }
  static void store(uint8_t* to, Bytes bytes) { _mm512_storeu_si512(to, bytes); }
  static Bytes low(Bytes both) { return _mm512_and_si512(both, _mm512_set1_epi8(0x0F)); }
  static Bytes high(Bytes both) { return low(_mm512_srli_epi16(both, 4)); }

  static Sum start(int32_t number) { return _mm512_set1_epi32(number); }
  static Sum add(Sum a, Sum b) { return _mm512_add_epi32(a, b); }
  static Avx512 to_float(Sum sum) { return {_mm512_cvtepi32_ps(sum)}; }
  static float sum(Avx512 a) { return _mm512_reduce_add_ps(a.value); }
  static float largest(Avx512 a) { return _mm512_reduce_max_ps(a.value); }
  static void store_bytes(int8_t* to, Avx512 biased) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_castps_si512(biased.value)));
  }

  template <typename Source, int kStepRows, int kVectors>
  POM_ALWAYS_INLINE static void step(const uint8_t* weights, int64_t tile_bytes, const int8_t* values, int64_t stride,
                                     Sums<Avx512Vnni, kStepRows, kVectors>* sums) {
    constexpr int kChainCount = Sums<Avx512Vnni, kStepRows, kVectors>::kChains;
#pragma GCC unroll 4
    for (int part = 0; part < kStepParts; ++part) {
      Bytes bytes[kVectors];
#pragma GCC unroll 16
      for (int vector = 0; vector < kVectors; ++vector) {
        const uint8_t* const from = weights + vector_offset<Avx512Vnni>(vector, tile_bytes, 4);
        bytes[vector] = Source::template part<Avx512Vnni>(from, part);
      }
#pragma GCC unroll 16
      for (int row = 0; row < kStepRows; ++row) {
        int32_t four;
        __builtin_memcpy(&four, values + row * stride + part * 4, sizeof four);
        const __m512i inputs = _mm512_set1_epi32(four);
#pragma GCC unroll 16
        for (int vector = 0; vector < kVectors; ++vector) {
          Sum& sum = sums->chains[part % kChainCount][row][vector];
          sum = _mm512_dpbusd_epi32(sum, bytes[vector], inputs);
        }
      }
    }
  }
};

}  // namespace

constexpr ProductKernel kAvx512VnniProducts = products_of<Avx512Vnni>("avx512vnni");

}  // namespace pom::cpu
