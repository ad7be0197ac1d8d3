// Norms over the columns of a row.
#pragma once

#include "../iterate.h"
#include "products.h"

namespace pom::cpu {
namespace {

// A float32 sum has this many vectors at most; such sums are added in float64, which keeps float32's precision for any
// width.
constexpr int64_t kSummedVectors = 16;

// The sum of term(x) over a row.
template <typename I, typename Term>
POM_ALWAYS_INLINE inline double sum_of(const float* x, int64_t width, const Term& term) {
  using V = typename I::Float;
  double total = 0.0;
  constexpr int64_t kStep = kSummedVectors * V::kWidth;
  for (int64_t first = 0; first < width; first += kStep) {
    const int64_t count = width - first < kStep ? width - first : kStep;
    V sum = V::broadcast(0.0F);
    for_each_vector<V>(count,
                       [&](int64_t i, auto lanes) POM_ALWAYS_INLINE { sum = V::add(sum, term(x + first + i, lanes)); });
    total += static_cast<double>(I::sum(sum));
  }
  return total;
}

// Lanes beyond the last column, which are 0 when they are loaded, with `value` subtracted: 0 again.
template <typename V>
POM_ALWAYS_INLINE inline V centered(const float* x, V value, AllLanes lanes) {
  return V::subtract(V::load(x, lanes), value);
}
template <typename V>
POM_ALWAYS_INLINE inline V centered(const float* x, V value, FirstLanes lanes) {
  float mean[V::kWidth];
  V::store(mean, value, AllLanes{});
  return V::subtract(V::load(x, lanes), V::load(mean, lanes));
}

// 1 / sqrt(squares / width + epsilon), or NaN if the squares have overflowed or are unknown.
inline float inverse_root(double squares, int64_t width, float epsilon) {
  const double root = __builtin_sqrt(squares / static_cast<double>(width) + static_cast<double>(epsilon));
  return static_cast<float>(1.0 / root + (squares - squares));
}

// y = (x - mean) * scale * gain + bias
template <typename V>
void scale_row(const float* x, int64_t width, V mean, V scale, const float* gain, const float* bias, float* y) {
  for_each_vector<V>(width, [&](int64_t i, auto lanes) POM_ALWAYS_INLINE {
    V value = V::multiply(V::subtract(V::load(x + i, lanes), mean), scale);
    if (gain != nullptr) {
      value = V::multiply(value, V::load(gain + i, lanes));
    }
    if (bias != nullptr) {
      value = V::add(value, V::load(bias + i, lanes));
    }
    V::store(y + i, value, lanes);
  });
}

template <typename I>
void rms_norm(const float* x, int64_t x_stride, int64_t rows, int64_t width, float epsilon, const float* gain, float* y,
              int64_t y_stride) {
  using V = typename I::Float;
  for (int64_t row = 0; row < rows; ++row) {
    const float* from = x + row * x_stride;
    const double squares = sum_of<I>(from, width, [](const float* at, auto lanes) POM_ALWAYS_INLINE {
      const V value = V::load(at, lanes);
      return V::multiply(value, value);
    });
    const V scale = V::broadcast(inverse_root(squares, width, epsilon));
    scale_row<V>(from, width, V::broadcast(0.0F), scale, gain, nullptr, y + row * y_stride);
  }
}

template <typename I>
void layer_norm(const float* x, int64_t x_stride, int64_t rows, int64_t width, float epsilon, const float* gain,
                const float* bias, float* y, int64_t y_stride) {
  using V = typename I::Float;
  for (int64_t row = 0; row < rows; ++row) {
    const float* from = x + row * x_stride;
    const double sum =
        sum_of<I>(from, width, [](const float* at, auto lanes) POM_ALWAYS_INLINE { return V::load(at, lanes); });
    const V mean = V::broadcast(static_cast<float>(sum / static_cast<double>(width)));
    const double squares = sum_of<I>(from, width, [&](const float* at, auto lanes) POM_ALWAYS_INLINE {
      const V value = centered(at, mean, lanes);
      return V::multiply(value, value);
    });
    const V scale = V::broadcast(inverse_root(squares, width, epsilon));
    scale_row<V>(from, width, mean, scale, gain, bias, y + row * y_stride);
  }
}

}  // namespace
}  // namespace pom::cpu
