// 8 lanes, for files compiled with AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

#include "../block.h"

namespace pom::cpu {
namespace {

struct Avx2 {
  static constexpr int kWidth = 8;
  static constexpr bool kFused = true;
  static constexpr bool kStreams = true;
  __m256 value;

  static Avx2 load(const float* from, AllLanes) { return {_mm256_loadu_ps(from)}; }
  static Avx2 load(const Half* from, AllLanes) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))};
  }
  static Avx2 load(const BFloat16* from, AllLanes) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
  }
  static void store(float* to, Avx2 a, AllLanes) { _mm256_storeu_ps(to, a.value); }
  static void store(Half* to, Avx2 a, AllLanes) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), half(a)); }
  static void store(BFloat16* to, Avx2 a, AllLanes) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bfloat16(a)); }

  template <typename T>
  static Avx2 load(const T* from, FirstLanes lanes) {
    T all[kWidth] = {};
    for (int64_t i = 0; i < lanes.count; ++i) {
      all[i] = from[i];
    }
    return load(all, AllLanes{});
  }
  template <typename T>
  static void store(T* to, Avx2 a, FirstLanes lanes) {
    T all[kWidth];
    store(all, a, AllLanes{});
    for (int64_t i = 0; i < lanes.count; ++i) {
      to[i] = all[i];
    }
  }

  static void stream(float* to, Avx2 a) { _mm256_stream_ps(to, a.value); }
  static void stream(float* to, Avx2 a, Avx2 b) {
    stream(to, a);
    stream(to + kWidth, b);
  }
  static void stream(Half* to, Avx2 a) { _mm_stream_si128(reinterpret_cast<__m128i*>(to), half(a)); }
  static void stream(BFloat16* to, Avx2 a) { _mm_stream_si128(reinterpret_cast<__m128i*>(to), bfloat16(a)); }
  static void stream(Half* to, Avx2 a, Avx2 b) { stream(to, half(a), half(b)); }
  static void stream(BFloat16* to, Avx2 a, Avx2 b) { stream(to, bfloat16(a), bfloat16(b)); }
  static void finish_streams() { _mm_sfence(); }

  static Avx2 broadcast(float value) { return {_mm256_set1_ps(value)}; }
  static Avx2 add(Avx2 a, Avx2 b) { return {_mm256_add_ps(a.value, b.value)}; }
  static Avx2 subtract(Avx2 a, Avx2 b) { return {_mm256_sub_ps(a.value, b.value)}; }
  static Avx2 multiply(Avx2 a, Avx2 b) { return {_mm256_mul_ps(a.value, b.value)}; }
  static Avx2 divide(Avx2 a, Avx2 b) { return {_mm256_div_ps(a.value, b.value)}; }
  static Avx2 multiply_add(Avx2 a, Avx2 b, Avx2 c) { return {_mm256_fmadd_ps(a.value, b.value, c.value)}; }
  // The instructions return their second operand if either is NaN.
  static Avx2 at_least(Avx2 a, Avx2 bound) { return {_mm256_max_ps(bound.value, a.value)}; }
  static Avx2 at_most(Avx2 a, Avx2 bound) { return {_mm256_min_ps(bound.value, a.value)}; }
  static Avx2 multiply_exp2(Avx2 a, Avx2 biased) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(biased.value), 23);
    return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.value), exponent))};
  }

 private:
  // A single instruction for both, since two of 16 bytes take longer.
  static void stream(void* to, __m128i a, __m128i b) {
    _mm256_stream_si256(static_cast<__m256i*>(to), _mm256_set_m128i(b, a));
  }
  static __m128i half(Avx2 a) { return _mm256_cvtps_ph(a.value, _MM_FROUND_TO_NEAREST_INT); }
  // Rounds to nearest, ties to even; a NaN becomes a quiet one.
  static __m128i bfloat16(Avx2 a) {
    const __m256i bits = _mm256_castps_si256(a.value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.value, a.value, _CMP_UNORD_Q));
    const __m256i kept = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(kept), _mm256_extracti128_si256(kept, 1));
  }
};

}  // namespace
}  // namespace pom::cpu
