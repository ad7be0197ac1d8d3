// The fallback: one lane, in plain C++, for any processor.
#include "../vectors/scalar.h"

#include "functions.h"

namespace pom::cpu {
namespace {

struct ScalarProducts : StepByParts<ScalarProducts> {
  using Float = Scalar;
  using Bytes = uint32_t;
  using Sum = int32_t;
  static constexpr int kRows = 1;
  static constexpr int kTiles = 1;
  static constexpr int kChains = 1;
  static constexpr int kFloatRows = 1;
  static constexpr int kFloatTiles = 1;

  static Bytes load(const uint8_t* from) {
    Bytes bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return bytes;
  }
  static Bytes low(Bytes both) { return both & 0x0F0F0F0FU; }
  static Bytes high(Bytes both) { return (both >> 4) & 0x0F0F0F0FU; }

  static constexpr bool kSigned = false;
  static Bytes whole(Bytes bytes) { return bytes; }

  static const int8_t* inputs(const int8_t* from) { return from; }
  static Sum dot(Sum sum, Bytes bytes, const int8_t* inputs) {
    for (int i = 0; i < 4; ++i) {
      sum += static_cast<int32_t>(bytes >> (8 * i) & 0xFFU) * inputs[i];
    }
    return sum;
  }

  static Sum start(int32_t number) { return number; }
  static Sum add(Sum a, Sum b) { return a + b; }
  static Scalar to_float(Sum sum) { return {static_cast<float>(sum)}; }
  static float sum(Scalar a) { return a.value; }
  static float largest(Scalar a) { return a.value; }
  static void store_bytes(int8_t* to, Scalar biased) { *to = static_cast<int8_t>(float_bits(biased.value) & 0xFFU); }
};

}  // namespace

constexpr ProductKernel kScalarProducts = products_of<ScalarProducts>("scalar");

}  // namespace pom::cpu
