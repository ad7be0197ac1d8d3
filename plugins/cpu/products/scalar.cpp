// The fallback: one lane, in plain C++, for any processor.
#include "../vectors/scalar.h"

#include "functions.h"

namespace pom::cpu {
namespace {

struct ScalarProducts {
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
  static void store(uint8_t* to, Bytes bytes) { std::memcpy(to, &bytes, sizeof bytes); }
  static Bytes low(Bytes both) { return both & 0x0F0F0F0FU; }
  static Bytes high(Bytes both) { return (both >> 4) & 0x0F0F0F0FU; }

  static Sum start(int32_t number) { return number; }
  static Sum add(Sum a, Sum b) { return a + b; }
  static Scalar to_float(Sum sum) { return {static_cast<float>(sum)}; }
  static float sum(Scalar a) { return a.value; }
  static float largest(Scalar a) { return a.value; }
  static void store_bytes(int8_t* to, Scalar biased) { *to = static_cast<int8_t>(float_bits(biased.value) & 0xFFU); }

  template <typename Source, int kStepRows, int kVectors>
  static void step(const uint8_t* weights, int64_t tile_bytes, const int8_t* values, int64_t stride,
                   Sums<ScalarProducts, kStepRows, kVectors>* sums) {
    for (int vector = 0; vector < kVectors; ++vector) {
      const uint8_t* const from = weights + vector_offset<ScalarProducts>(vector, tile_bytes, 4);
      for (int part = 0; part < kStepParts; ++part) {
        uint8_t bytes[4];
        store(bytes, Source::template part<ScalarProducts>(from, part));
        for (int row = 0; row < kStepRows; ++row) {
          for (int i = 0; i < 4; ++i) {
            sums->chains[0][row][vector] += bytes[i] * values[row * stride + part * 4 + i];
          }
        }
      }
    }
  }
};

}  // namespace

constexpr ProductKernel kScalarProducts = products_of<ScalarProducts>("scalar");

}  // namespace pom::cpu
