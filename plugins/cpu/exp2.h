// 2^x for vectors of float32, the basis of exponentials.
//
// The polynomial for 2^r on [-1/2, 1/2], with 2^0 = 1 exact, was fitted to float64 values by iteratively reweighted
// least squares (Lawson), which minimises the largest error.
#pragma once

#include "block.h"

namespace pom::cpu {
namespace {

constexpr float kExp2[] = {1.0F,           0.693147182F,   0.240226507F,   0.055503279F,
                           0.00961800385F, 0.00134002697F, 0.000154762994F};
// A float32 of this size has no fraction, so that adding it rounds to an integer, which is then in the lowest bits.
constexpr float kRoundingBias = 0x1.8p23F;

// Evaluates coefficients[0] + coefficients[1] * x + ..., for kCount vectors at a time.
template <typename V, int kCount, int kTerms>
POM_ALWAYS_INLINE inline void evaluate(const float (&coefficients)[kTerms], const V* x, V* value) {
  for (int i = 0; i < kCount; ++i) {
    value[i] = V::broadcast(coefficients[kTerms - 1]);
  }
  for (int k = kTerms - 2; k >= 0; --k) {
    const V coefficient = V::broadcast(coefficients[k]);
    for (int i = 0; i < kCount; ++i) {
      value[i] = V::multiply_add(value[i], x[i], coefficient);
    }
  }
}

// The integer nearest to x, plus kRoundingBias, for |x| below 2^22.
template <typename V>
POM_ALWAYS_INLINE inline V biased_integer(V x) {
  return V::add(x, V::broadcast(kRoundingBias));
}

// 2^(n + fraction), where biased is n + kRoundingBias, if it is a normal number. The fraction is at most 1/2.
template <typename V, int kCount>
POM_ALWAYS_INLINE inline void exp2(const V* biased, const V* fraction, V* value) {
  evaluate<V, kCount>(kExp2, fraction, value);
  for (int i = 0; i < kCount; ++i) {
    value[i] = V::multiply_exp2(value[i], biased[i]);
  }
}

}  // namespace
}  // namespace pom::cpu
