// Device arithmetic on single values.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "pom/aggregate.h"

namespace pom::cuda {

// The same bits as another type.
template <typename To, typename From>
__device__ __forceinline__ To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "types of one size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// A value whose type x's DataType determines at run time, as its bits. A template instantiated for this type handles
// all three types, where single values are read and written anyway.
struct AnyValue {
  uint32_t bits;
};

template <typename T>
inline constexpr bool kIsAny = false;
template <>
inline constexpr bool kIsAny<AnyValue> = true;

// In all of these, `type` is x's type, or that of a tensor of another type; it is only used if T is AnyValue.
__device__ __forceinline__ float to_float(float value, DataType) { return value; }
__device__ __forceinline__ float to_float(__half value, DataType) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value, DataType) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(AnyValue value, DataType type) {
  if (type == DataType::kFloat32) {
    return bits_as<float>(value.bits);
  }
  if (type == DataType::kFloat16) {
    __half_raw half;
    half.x = static_cast<uint16_t>(value.bits);
    return __half2float(half);
  }
  return bits_as<float>(value.bits << 16);  // a bfloat16 is the upper half of its float
}

__device__ __forceinline__ float not_a_number() { return bits_as<float>(0x7FC00000U); }

__device__ __forceinline__ void round_to(float value, float* rounded) { *rounded = value; }
__device__ __forceinline__ void round_to(float value, __half* rounded) { *rounded = __float2half_rn(value); }
__device__ __forceinline__ void round_to(float value, __nv_bfloat16* rounded) { *rounded = __float2bfloat16_rn(value); }

// Element `index` of a tensor of x's type.
template <typename T>
__device__ __forceinline__ T read_value(const void* tensor, DataType type, int64_t index) {
  if constexpr (kIsAny<T>) {
    return {type == DataType::kFloat32 ? static_cast<const uint32_t*>(tensor)[index]
                                       : static_cast<const uint16_t*>(tensor)[index]};
  } else {
    return static_cast<const T*>(tensor)[index];
  }
}

template <typename T>
__device__ __forceinline__ void write_value(float value, void* tensor, DataType type, int64_t index) {
  if constexpr (!kIsAny<T>) {
    round_to(value, static_cast<T*>(tensor) + index);
  } else if (type == DataType::kFloat32) {
    static_cast<float*>(tensor)[index] = value;
  } else if (type == DataType::kFloat16) {
    round_to(value, static_cast<__half*>(tensor) + index);
  } else {
    round_to(value, static_cast<__nv_bfloat16*>(tensor) + index);
  }
}

// Element `index` of a tensor whose type is only known at run time; T is x's type.
template <typename T>
__device__ __forceinline__ float read_as_float(const void* tensor, DataType type, int64_t index) {
  if (type == DataType::kBool) {
    return static_cast<const uint8_t*>(tensor)[index] != 0 ? 1.0F : 0.0F;
  }
  if (type == DataType::kFloat32) {
    return static_cast<const float*>(tensor)[index];
  }
  return to_float(read_value<T>(tensor, type, index), type);
}

// The larger and the smaller of two values, preserving NaNs, which fmaxf and fminf would drop.
__device__ __forceinline__ float larger(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#else
  return a > b || a != a ? a : b;
#endif
}

__device__ __forceinline__ float smaller(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#else
  return a < b || a != a ? a : b;
#endif
}

// clamp(leaky_relu(x)): below 0, the scaled value is the larger one.
__device__ __forceinline__ float activate(float x) {
  return smaller(larger(larger(x, kLeakySlope * x), kClampLow), kClampHigh);
}

// With erf, like PyTorch's default.
__device__ __forceinline__ float gelu(float x) {
  constexpr float kRootOfHalf = 0.70710678118654752F;
  return 0.5F * x * (1.0F + erff(x * kRootOfHalf));
}

// Accurate to 2 ulp, without the code for subnormals that 1 / x entails; 0 above kDivisorLimit.
__device__ __forceinline__ float reciprocal(float value) {
#if defined(__CUDACC__)
  return __fdividef(1.0F, value);
#else
  return fabsf(value) > kDivisorLimit ? 0.0F : 1.0F / value;
#endif
}

// The factor that turns a sum into its mean; 0 if the mean is none(weight), whatever the sum.
__device__ __forceinline__ float mean_scale(float weight, float epsilon) {
  return weight == 0.0F ? 0.0F : reciprocal(epsilon + weight);
}

// The mean of a masked-out row, whose weights sum to 0, is 0. The reciprocal of too large a divisor is 0 as well.
__device__ __forceinline__ float none(float weight) { return weight == 0.0F ? 0.0F : not_a_number(); }

// A sum together with the rounding errors of its additions (Knuth's two-sum).
struct CompensatedSum {
  float sum = 0.0F;
  float lost = 0.0F;

  __device__ __forceinline__ void add(float value) {
    const float next = sum + value;
    const float taken = next - sum;
    lost += (sum - (next - taken)) + (value - taken);
    sum = next;
  }
  __device__ __forceinline__ void add(const CompensatedSum& other) {
    add(other.sum);
    lost += other.lost;
  }
  // The error of an infinite sum is NaN, which is replaced by 0. A NaN that was the error of a finite sum is kept.
  [[nodiscard]] __device__ __forceinline__ float error() const { return sum - sum == 0.0F ? lost : 0.0F; }
  [[nodiscard]] __device__ __forceinline__ float value() const { return sum + error(); }
};

}  // namespace pom::cuda
