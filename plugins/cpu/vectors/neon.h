// 4 lanes, for AArch64.
#pragma once

#include <arm_neon.h>

#include "../block.h"

namespace pom::cpu {
namespace {

struct Neon {
  static constexpr int kWidth = 4;
  static constexpr bool kFused = true;
  static constexpr bool kStreams = false;
  float32x4_t value;

  static Neon load(const float* from, AllLanes) { return {vld1q_f32(from)}; }
  static Neon load(const Half* from, AllLanes) {
    return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(from))))};
  }
  static Neon load(const BFloat16* from, AllLanes) {
    return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(from)), 16))};
  }
  static void store(float* to, Neon a, AllLanes) { vst1q_f32(to, a.value); }
  static void store(Half* to, Neon a, AllLanes) {
    vst1_u16(reinterpret_cast<uint16_t*>(to), vreinterpret_u16_f16(vcvt_f16_f32(a.value)));
  }
  // Rounds to nearest, ties to even; a NaN becomes a quiet one.
  static void store(BFloat16* to, Neon a, AllLanes) {
    const uint32x4_t bits = vreinterpretq_u32_f32(a.value);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x00400000));
    const uint32x4_t kept = vbslq_u32(vceqq_f32(a.value, a.value), rounded, quiet);
    vst1_u16(reinterpret_cast<uint16_t*>(to), vshrn_n_u32(kept, 16));
  }

  template <typename T>
  static Neon load(const T* from, FirstLanes lanes) {
    T all[kWidth] = {};
    for (int64_t i = 0; i < lanes.count; ++i) {
      all[i] = from[i];
    }
    return load(all, AllLanes{});
  }
  template <typename T>
  static void store(T* to, Neon a, FirstLanes lanes) {
    T all[kWidth];
    store(all, a, AllLanes{});
    for (int64_t i = 0; i < lanes.count; ++i) {
      to[i] = all[i];
    }
  }

  static Neon broadcast(float value) { return {vdupq_n_f32(value)}; }
  static Neon add(Neon a, Neon b) { return {vaddq_f32(a.value, b.value)}; }
  static Neon subtract(Neon a, Neon b) { return {vsubq_f32(a.value, b.value)}; }
  static Neon multiply(Neon a, Neon b) { return {vmulq_f32(a.value, b.value)}; }
  static Neon divide(Neon a, Neon b) { return {vdivq_f32(a.value, b.value)}; }
  static Neon multiply_add(Neon a, Neon b, Neon c) { return {vfmaq_f32(c.value, a.value, b.value)}; }
  // The instructions return NaN if either operand is NaN.
  static Neon at_least(Neon a, Neon bound) { return {vmaxq_f32(a.value, bound.value)}; }
  static Neon at_most(Neon a, Neon bound) { return {vminq_f32(a.value, bound.value)}; }
  static Neon multiply_exp2(Neon a, Neon biased) {
    const uint32x4_t exponent = vshlq_n_u32(vreinterpretq_u32_f32(biased.value), 23);
    return {vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(a.value), exponent))};
  }
};

}  // namespace
}  // namespace pom::cpu
