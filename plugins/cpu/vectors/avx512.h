// 16 lanes, for files compiled with AVX-512 F, BW, DQ and VL.
#pragma once

#include <immintrin.h>

#include "../block.h"

namespace pom::cpu {
namespace {

struct Avx512 {
  static constexpr int kWidth = 16;
  static constexpr bool kFused = true;
  static constexpr bool kStreams = true;
  __m512 value;

  static Avx512 load(const float* from, AllLanes) { return {_mm512_loadu_ps(from)}; }
  static Avx512 load(const Half* from, AllLanes) { return {_mm512_cvtph_ps(_mm256_loadu_epi16(from))}; }
  static Avx512 load(const BFloat16* from, AllLanes) { return widened(_mm256_loadu_epi16(from)); }
  static Avx512 load(const float* from, FirstLanes lanes) { return {_mm512_maskz_loadu_ps(mask(lanes), from)}; }
  static Avx512 load(const Half* from, FirstLanes lanes) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask(lanes), from))};
  }
  static Avx512 load(const BFloat16* from, FirstLanes lanes) {
    return widened(_mm256_maskz_loadu_epi16(mask(lanes), from));
  }

  static void store(float* to, Avx512 a, AllLanes) { _mm512_storeu_ps(to, a.value); }
  static void store(Half* to, Avx512 a, AllLanes) { _mm256_storeu_epi16(to, half(a)); }
  static void store(BFloat16* to, Avx512 a, AllLanes) { _mm256_storeu_epi16(to, bfloat16(a)); }
  static void store(float* to, Avx512 a, FirstLanes lanes) { _mm512_mask_storeu_ps(to, mask(lanes), a.value); }
  static void store(Half* to, Avx512 a, FirstLanes lanes) { _mm256_mask_storeu_epi16(to, mask(lanes), half(a)); }
  static void store(BFloat16* to, Avx512 a, FirstLanes lanes) {
    _mm256_mask_storeu_epi16(to, mask(lanes), bfloat16(a));
  }

  static void stream(float* to, Avx512 a) { _mm512_stream_ps(to, a.value); }
  static void stream(Half* to, Avx512 a) { _mm256_stream_si256(reinterpret_cast<__m256i*>(to), half(a)); }
  static void stream(BFloat16* to, Avx512 a) { _mm256_stream_si256(reinterpret_cast<__m256i*>(to), bfloat16(a)); }
  template <typename T>
  static void stream(T* to, Avx512 a, Avx512 b) {
    stream(to, a);
    stream(to + kWidth, b);
  }
  static void finish_streams() { _mm_sfence(); }

  static Avx512 broadcast(float value) { return {_mm512_set1_ps(value)}; }
  static Avx512 add(Avx512 a, Avx512 b) { return {_mm512_add_ps(a.value, b.value)}; }
  static Avx512 subtract(Avx512 a, Avx512 b) { return {_mm512_sub_ps(a.value, b.value)}; }
  static Avx512 multiply(Avx512 a, Avx512 b) { return {_mm512_mul_ps(a.value, b.value)}; }
  static Avx512 divide(Avx512 a, Avx512 b) { return {_mm512_div_ps(a.value, b.value)}; }
  static Avx512 multiply_add(Avx512 a, Avx512 b, Avx512 c) { return {_mm512_fmadd_ps(a.value, b.value, c.value)}; }
  // The instructions return their second operand if either is NaN.
  static Avx512 at_least(Avx512 a, Avx512 bound) { return {_mm512_max_ps(bound.value, a.value)}; }
  static Avx512 at_most(Avx512 a, Avx512 bound) { return {_mm512_min_ps(bound.value, a.value)}; }
  static Avx512 multiply_exp2(Avx512 a, Avx512 biased) {
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(biased.value), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a.value), exponent))};
  }

 private:
  // The positions of the lanes' upper halves, twice.
  static __m512i upper_halves() {
    return _mm512_set4_epi64(0x001F001D001B0019, 0x0017001500130011, 0x000F000D000B0009, 0x0007000500030001);
  }
  static __mmask16 mask(FirstLanes lanes) { return static_cast<__mmask16>((1U << lanes.count) - 1U); }
  static __m256i half(Avx512 a) { return _mm512_cvtps_ph(a.value, _MM_FROUND_TO_NEAREST_INT); }
  static Avx512 widened(__m256i bits) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
  // Rounds to nearest, ties to even; a NaN becomes a quiet one.
  static __m256i bfloat16(Avx512 a) {
    const __m512i bits = _mm512_castps_si512(a.value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    const __mmask16 nan = _mm512_cmp_ps_mask(a.value, a.value, _CMP_UNORD_Q);
    const __m512i kept = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x00400000));
    return _mm512_castsi512_si256(_mm512_permutexvar_epi16(upper_halves(), kept));
  }
};

}  // namespace
}  // namespace pom::cpu
