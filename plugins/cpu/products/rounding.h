// The rounding of activations to 8 bits, exactly as MLAS does it for MatMulNBits at accuracy level 4.
#pragma once

#include <cstddef>

#include "../exp2.h"
#include "../iterate.h"
#include "products.h"

namespace pom::cpu {
namespace {

constexpr float kLargestRounded = 127.0F;

inline bool is_finite(float value) { return value - value == 0.0F; }

// Some inputs of one block, at most `block` of them; the values beyond them are set to 0.
template <typename I>
void round_block(const float* x, int64_t inputs, int64_t block, int8_t* values, float* scale, int32_t* correction) {
  using V = typename I::Float;
  const V zero = V::broadcast(0.0F);
  V magnitude = zero;
  V unknown = zero;  // 0, or NaN if any number is not finite
  for_each_vector<V>(inputs, [&](int64_t i, auto lanes) POM_ALWAYS_INLINE {
    const V value = V::load(x + i, lanes);
    magnitude = V::at_least(magnitude, V::at_least(value, V::subtract(zero, value)));
    unknown = V::add(unknown, V::multiply(value, zero));
  });
  const float peak = I::largest(magnitude);
  const float inverse = kLargestRounded / peak;
  if (!is_finite(I::sum(unknown)) || !is_finite(inverse)) {
    // Below about 4e-37, the inverse overflows, and the numbers count as 0.
    *scale = is_finite(I::sum(unknown)) ? 0.0F : __builtin_nanf("");
    *correction = 0;
    __builtin_memset(values, 0, static_cast<size_t>(block));
    return;
  }
  V total = zero;  // exact: at most kLargestProductBlock times 127
  for_each_vector<V>(inputs, [&](int64_t i, auto lanes) POM_ALWAYS_INLINE {
    const V rounded = biased_integer(V::multiply(V::load(x + i, lanes), V::broadcast(inverse)));
    total = V::add(total, V::subtract(rounded, V::broadcast(kRoundingBias)));
    I::store_bytes(values + i, rounded);
  });
  *scale = peak / kLargestRounded;
  *correction = -8 * static_cast<int32_t>(I::sum(total));
  const int64_t written = (inputs + V::kWidth - 1) / V::kWidth * V::kWidth;
  if (written < block) {
    __builtin_memset(values + written, 0, static_cast<size_t>(block - written));
  }
}

template <typename I>
void round_rows(const float* x, int64_t x_stride, int64_t rows, int64_t inputs, int64_t block, int8_t* values,
                float* scales, int32_t* corrections) {
  const int64_t blocks = (inputs + block - 1) / block;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = b * block;
      const int64_t count = inputs - first < block ? inputs - first : block;
      const int64_t at = row * blocks + b;
      round_block<I>(x + row * x_stride + first, count, block, values + at * block, scales + at, corrections + at);
    }
  }
}

}  // namespace
}  // namespace pom::cpu
