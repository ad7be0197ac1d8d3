// What the instruction sets with 32-byte vectors share. For files compiled with AVX2, FMA and F16C.
#pragma once

#include "../vectors/avx2.h"
#include "functions.h"

namespace pom::cpu {
namespace {

struct Avx2Integers {
  using Float = Avx2;
  using Bytes = __m256i;
  using Sum = __m256i;
  static constexpr int kTiles = 1;
  static constexpr int kFloatRows = 6;
  static constexpr int kFloatTiles = 1;

  static Bytes load(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
  static Bytes low(Bytes both) { return _mm256_and_si256(both, _mm256_set1_epi8(0x0F)); }
  static Bytes high(Bytes both) { return low(_mm256_srli_epi16(both, 4)); }

  static __m256i inputs(const int8_t* from) {
    int32_t four;
    __builtin_memcpy(&four, from, sizeof four);
    return _mm256_set1_epi32(four);
  }

  static Sum start(int32_t number) { return _mm256_set1_epi32(number); }
  static Sum add(Sum a, Sum b) { return _mm256_add_epi32(a, b); }
  static Avx2 to_float(Sum sum) { return {_mm256_cvtepi32_ps(sum)}; }

  static float sum(Avx2 a) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a.value), _mm256_extractf128_ps(a.value, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static float largest(Avx2 a) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a.value), _mm256_extractf128_ps(a.value, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
  static void store_bytes(int8_t* to, Avx2 biased) {
    // The lowest byte of each lane, to the lowest 4 bytes of each half.
    const __m256i order =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_castps_si256(biased.value), order);
    const __m128i eight = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), eight);
  }
};

}  // namespace
}  // namespace pom::cpu
