// AArch64: all of these processors have these instructions.
#include "neon.h"

namespace pom::cpu {
namespace {

struct NeonProducts : NeonIntegers {
  // Two numbers for each output, whose sum is the output's.
  struct Sum {
    int32x4_t first;
    int32x4_t last;
  };
  static constexpr int kRows = 2;
  static constexpr int kChains = 1;
  static constexpr bool kSigned = true;

  static Sum start(int32_t number) {
    const int32x4_t numbers = vreinterpretq_s32_s64(vdupq_n_s64(static_cast<uint32_t>(number)));
    return {numbers, numbers};
  }
  static Sum add(Sum a, Sum b) { return {vaddq_s32(a.first, b.first), vaddq_s32(a.last, b.last)}; }
  static Neon to_float(Sum sum) { return {vcvtq_f32_s32(vpaddq_s32(sum.first, sum.last))}; }

  // 4 products fit into 16 bits: a weight is at most 15 and an activation 127.
  template <int kStepRows, int kVectors>
  POM_ALWAYS_INLINE static void step(const uint8_t* weights, int64_t tile_bytes, const int8_t* values, int64_t stride,
                                     Sums<NeonProducts, kStepRows, kVectors>* sums) {
#pragma GCC unroll 16
    for (int vector = 0; vector < kVectors; ++vector) {
      Bytes bytes[kStepParts];
#pragma GCC unroll 4
      for (int part = 0; part < kStepParts; ++part) {
        bytes[part] = step_part<NeonProducts>(weights + vector_offset<NeonProducts>(vector, tile_bytes, 4), part);
      }
#pragma GCC unroll 16
      for (int row = 0; row < kStepRows; ++row) {
        const int8_t* const from = values + row * stride;
        int8x16_t four = inputs(from);
        int16x8_t first = vmull_s8(vget_low_s8(bytes[0]), vget_low_s8(four));
        int16x8_t last = vmull_high_s8(bytes[0], four);
#pragma GCC unroll 4
        for (int part = 1; part < kStepParts; ++part) {
          four = inputs(from + part * 4);
          first = vmlal_s8(first, vget_low_s8(bytes[part]), vget_low_s8(four));
          last = vmlal_high_s8(last, bytes[part], four);
        }
        Sum& sum = sums->chains[0][row][vector];
        sum = {vpadalq_s16(sum.first, first), vpadalq_s16(sum.last, last)};
      }
    }
  }

  // Two products fit into 16 bits: 2 * 128 * 127.
  template <int kStepRows, int kVectors>
  POM_ALWAYS_INLINE static void step8(const uint8_t* weights, int64_t tile_bytes, const int8_t* values, int64_t stride,
                                      Sums<NeonProducts, kStepRows, kVectors>* sums) {
#pragma GCC unroll 16
    for (int vector = 0; vector < kVectors; ++vector) {
      const uint8_t* const at = weights + vector_offset<NeonProducts>(vector, tile_bytes, 4);
      Bytes bytes[kStepParts];
#pragma GCC unroll 4
      for (int part = 0; part < kStepParts; ++part) {
        bytes[part] = whole(load(at + part * kChunkBytes));
      }
#pragma GCC unroll 16
      for (int row = 0; row < kStepRows; ++row) {
        const int8_t* const from = values + row * stride;
        Sum& sum = sums->chains[0][row][vector];
#pragma GCC unroll 2
        for (int part = 0; part < kStepParts; part += 2) {
          const int8x16_t four = inputs(from + part * 4);
          const int8x16_t next = inputs(from + part * 4 + 4);
          int16x8_t first = vmull_s8(vget_low_s8(bytes[part]), vget_low_s8(four));
          int16x8_t last = vmull_high_s8(bytes[part], four);
          first = vmlal_s8(first, vget_low_s8(bytes[part + 1]), vget_low_s8(next));
          last = vmlal_high_s8(last, bytes[part + 1], next);
          sum = {vpadalq_s16(sum.first, first), vpadalq_s16(sum.last, last)};
        }
      }
    }
  }
};

}  // namespace

constexpr ProductKernel kNeonProducts = products_of<NeonProducts>("neon");

}  // namespace pom::cpu
