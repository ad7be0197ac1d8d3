// IEEE half precision and bfloat16 without hardware support. Not for the files compiled with instruction-set flags (see
// kernel.h).
#pragma once

#include <cstdint>
#include <cstring>

#include "kernel.h"

namespace pom::cpu {

inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float to_float(Half half) {
  constexpr uint32_t kRebias = (127U - 15U) << 23;
  const uint32_t sign = (half.bits & 0x8000U) << 16;
  const uint32_t magnitude = half.bits & 0x7FFFU;
  if (magnitude < 0x0400U) {  // subnormal: a multiple of 2^-24
    return float_from_bits(sign | float_bits(static_cast<float>(magnitude) * 0x1p-24F));
  }
  const uint32_t infinite = magnitude >= 0x7C00U ? kRebias : 0U;  // infinity and NaN need the exponent shifted twice
  return float_from_bits(sign | ((magnitude << 13) + kRebias + infinite));
}

// Rounds to nearest, ties to even.
inline Half to_half(float value) {
  constexpr uint32_t kRebias = (127U - 15U) << 23;
  const uint32_t sign = (float_bits(value) >> 16) & 0x8000U;
  const uint32_t magnitude = float_bits(value) & 0x7FFFFFFFU;
  uint32_t half;
  if (magnitude > 0x7F800000U) {
    half = 0x7E00U;
  } else if (magnitude >= 0x47800000U) {  // 65536
    half = 0x7C00U;
  } else if (magnitude < 0x38800000U) {  // 2^-14; the last digit of 0.5 is 2^-24, so that the addition rounds correctly
    half = float_bits(float_from_bits(magnitude) + 0.5F) - float_bits(0.5F);
  } else {
    half = (magnitude + 0x0FFFU + ((magnitude >> 13) & 1U) - kRebias) >> 13;
  }
  return {static_cast<uint16_t>(sign | half)};
}

inline float to_float(BFloat16 value) { return float_from_bits(uint32_t{value.bits} << 16); }

// Rounds to nearest, ties to even.
inline BFloat16 to_bfloat16(float value) {
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) {
    return {static_cast<uint16_t>((bits >> 16) | 0x0040U)};  // a quiet NaN with its payload
  }
  return {static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16)};
}

}  // namespace pom::cpu
