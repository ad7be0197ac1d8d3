// Device arithmetic on single values.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "pom/aggregate.h"

namespace pom::cuda {

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

// The same bits as another type.
template <typename To, typename From>
__device__ __forceinline__ To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "types of one size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

__device__ __forceinline__ float not_a_number() { return bits_as<float>(0x7FC00000U); }

__device__ __forceinline__ void round_to(float value, float* rounded) { *rounded = value; }
__device__ __forceinline__ void round_to(float value, __half* rounded) { *rounded = __float2half_rn(value); }
__device__ __forceinline__ void round_to(float value, __nv_bfloat16* rounded) { *rounded = __float2bfloat16_rn(value); }

// Element `index` of a tensor whose type the problem names at run time; T is x's type.
template <typename T>
__device__ __forceinline__ float read_as_float(const void* tensor, DataType type, int64_t index) {
  if (type == DataType::kBool) {
    return static_cast<const uint8_t*>(tensor)[index] != 0 ? 1.0F : 0.0F;
  }
  if (type == DataType::kFloat32) {
    return static_cast<const float*>(tensor)[index];
  }
  return to_float(static_cast<const T*>(tensor)[index]);
}

// The larger and the smaller of two; a NaN stays one, where fmaxf and fminf would drop it.
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

// clamp(leaky_relu(x)): below 0, the multiple is the larger.
__device__ __forceinline__ float activate(float x) {
  return smaller(larger(larger(x, kLeakySlope * x), kClampLow), kClampHigh);
}

// With erf, as PyTorch's default.
__device__ __forceinline__ float gelu(float x) {
  constexpr float kRootOfHalf = 0.70710678118654752F;
  return 0.5F * x * (1.0F + erff(x * kRootOfHalf));
}

// Within 2 ulp, and without the code for denormals that 1 / x brings; 0 above kDivisorLimit.
__device__ __forceinline__ float reciprocal(float value) {
#if defined(__CUDACC__)
  return __fdividef(1.0F, value);
#else
  return fabsf(value) > kDivisorLimit ? 0.0F : 1.0F / value;
#endif
}

// What a sum is multiplied with for its mean; 0 where the mean is none(weight), whatever the sum.
__device__ __forceinline__ float mean_scale(float weight, float epsilon) {
  return weight == 0.0F ? 0.0F : reciprocal(epsilon + weight);
}

// The mean of a masked-out row, whose weights sum to 0, is 0. The reciprocal of too large a divisor is 0 as well.
__device__ __forceinline__ float none(float weight) { return weight == 0.0F ? 0.0F : not_a_number(); }

// A sum that carries the rounding errors of its additions along (Knuth's two-sum).
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
  // An infinite sum leaves a NaN as its error. A NaN that came in as the error of a finite one stays.
  [[nodiscard]] __device__ __forceinline__ float error() const { return sum - sum == 0.0F ? lost : 0.0F; }
  [[nodiscard]] __device__ __forceinline__ float value() const { return sum + error(); }
};

}  // namespace pom::cuda
