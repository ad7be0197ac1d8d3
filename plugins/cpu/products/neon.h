// What the instruction sets of AArch64 share.
#pragma once

#include "../vectors/neon.h"
#include "functions.h"

namespace pom::cpu {
namespace {

struct NeonIntegers {
  using Float = Neon;
  using Bytes = int8x16_t;
  static constexpr int kTiles = 1;
  static constexpr int kFloatRows = 5;
  static constexpr int kFloatTiles = 1;

  static Bytes load(const uint8_t* from) { return vreinterpretq_s8_u8(vld1q_u8(from)); }
  static Bytes low(Bytes both) { return vandq_s8(both, vdupq_n_s8(0x0F)); }
  static Bytes high(Bytes both) { return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(both), 4)); }

  // Weights of 8 bits are stored without a sign.
  static Bytes whole(Bytes bytes) { return veorq_s8(bytes, vdupq_n_s8(INT8_MIN)); }

  static int8x16_t inputs(const int8_t* from) {
    int32_t four;
    __builtin_memcpy(&four, from, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
  }

  static float sum(Neon a) { return vaddvq_f32(a.value); }
  static float largest(Neon a) { return vmaxvq_f32(a.value); }
  static void store_bytes(int8_t* to, Neon biased) {
    const int16x4_t halves = vmovn_s32(vreinterpretq_s32_f32(biased.value));
    const int32x2_t bytes = vreinterpret_s32_s8(vmovn_s16(vcombine_s16(halves, halves)));
    const int32_t four = vget_lane_s32(bytes, 0);
    __builtin_memcpy(to, &four, sizeof four);
  }
};

}  // namespace
}  // namespace pom::cpu
