// gelu(x) = x * (1 + erf(x / sqrt(2))) / 2, for vectors of float32.
//
// With a = |x| and q(a) = erfc(a / sqrt(2)) / 2 it is max(x, 0) - a * q(a), which loses no digits where x < 0. Up to
// kTail, q(a) = exp(-a^2 / 2) times a polynomial; from there on a * q(a), below 6e-9, stays as it is at kTail.
//
// Both polynomials were fitted to values in float64, by least squares reweighted (Lawson) until the largest error was
// least: q's in q * max(a, 1), with q(0) = 1/2 exact, that of 2^r on [-1/2, 1/2] with 2^0 = 1 exact. In float32, over 2
// million a from 0 to 7, the error of erf is at most 1.04e-7 where multiply_add is fused and 1.22e-7 where it is not,
// that of gelu 4.9e-8 and 5.5e-8 plus the last rounding.
#pragma once

#include "block.h"

namespace pom::cpu {
namespace {

constexpr float kTail = 6.0F;
constexpr float kGeluTail[] = {0.5F,           -0.398941696F,   0.249987856F,    -0.132893428F,
                               0.0621854104F,  -0.0259293132F,  0.00950524397F,  -0.00294643268F,
                               0.00072981132F, -0.00013506152F, 1.71916454e-05F, -1.3246198e-06F,
                               4.61548524e-08F};
constexpr float kExp2[] = {1.0F,           0.693147182F,   0.240226507F,   0.055503279F,
                           0.00961800385F, 0.00134002697F, 0.000154762994F};
constexpr float kHalfLog2E = 0.721347511F;
// A float32 of this size has no fraction: adding it rounds to an integer, which is then in the lowest bits.
constexpr float kRoundingBias = 0x1.8p23F;

// Evaluate coefficients[0] + coefficients[1] * x + ..., for kCount vectors at a time.
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

// exp(-a^2 / 2) for a from 0 to kTail.
template <typename V, int kCount>
POM_ALWAYS_INLINE inline void gaussian(const V* a, V* value) {
  V biased[kCount];
  V fraction[kCount];
  for (int i = 0; i < kCount; ++i) {
    const V exponent = V::multiply(a[i], V::multiply(a[i], V::broadcast(-kHalfLog2E)));
    biased[i] = V::add(exponent, V::broadcast(kRoundingBias));
    fraction[i] = V::subtract(exponent, V::subtract(biased[i], V::broadcast(kRoundingBias)));
  }
  evaluate<V, kCount>(kExp2, fraction, value);
  for (int i = 0; i < kCount; ++i) {
    value[i] = V::multiply_exp2(value[i], biased[i]);
  }
}

// V::multiply_exp2(v, biased) is v * 2^n where biased is n + kRoundingBias, as far as the result is a normal number.

// Each of kCount vectors becomes its GELU. A NaN stays one.
template <typename V, int kCount>
POM_ALWAYS_INLINE inline void gelu(V* x) {
  const V zero = V::broadcast(0.0F);
  V a[kCount];
  V bell[kCount];
  V tail[kCount];
  for (int i = 0; i < kCount; ++i) {
    a[i] = V::at_most(V::at_least(x[i], V::subtract(zero, x[i])), V::broadcast(kTail));
  }
  gaussian<V, kCount>(a, bell);
  evaluate<V, kCount>(kGeluTail, a, tail);
  for (int i = 0; i < kCount; ++i) {
    const V lost = V::multiply(a[i], V::multiply(tail[i], bell[i]));
    x[i] = V::subtract(V::at_least(x[i], zero), lost);
  }
}

}  // namespace
}  // namespace pom::cpu
