// AArch64 with the dot product instructions. Compiled with that flag: include nothing that emits inline functions
// (kernel.h).
#include "neon.h"

namespace pom::cpu {
namespace {

struct NeonDot : NeonIntegers, StepByParts<NeonDot> {
  using Sum = int32x4_t;
  static constexpr int kRows = 4;
  static constexpr int kChains = 8;

  static constexpr bool kSigned = true;

  static Sum start(int32_t number) { return vdupq_n_s32(number); }
  static Sum add(Sum a, Sum b) { return vaddq_s32(a, b); }
  static Neon to_float(Sum sum) { return {vcvtq_f32_s32(sum)}; }
  static Sum dot(Sum sum, Bytes bytes, int8x16_t inputs) { return vdotq_s32(sum, bytes, inputs); }
};

}  // namespace

constexpr ProductKernel kNeonDotProducts = products_of<NeonDot>("neondot");

}  // namespace pom::cpu
