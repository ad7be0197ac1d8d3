// Device arithmetic on single values, and aligned packs of them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>

#include "pom/aggregate.h"

namespace pom::cuda {

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

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

// Width values that move as one access.
template <typename T, int32_t Width>
struct alignas(sizeof(T) * Width) Pack {
  T values[Width];
};

template <typename T, int32_t Width>
__device__ __forceinline__ Pack<T, Width> rounded(const float (&values)[Width]) {
  Pack<T, Width> pack;
#pragma unroll
  for (int32_t v = 0; v < Width; ++v) {
    round_to(values[v], &pack.values[v]);
  }
  return pack;
}

// The Width elements from `index` on of such a tensor, 16 bytes an access; 16-byte aligned where Width is not 1.
template <typename T, int32_t Width>
__device__ __forceinline__ void read_pack(const void* tensor, DataType type, int64_t index, float (&values)[Width]) {
  constexpr int32_t kFloats = Width < 4 ? Width : 4;
  if (type == DataType::kFloat32) {
    const auto* packs = static_cast<const Pack<float, kFloats>*>(tensor) + index / kFloats;
#pragma unroll
    for (int32_t v = 0; v < Width; ++v) {
      values[v] = packs[v / kFloats].values[v % kFloats];
    }
  } else {
    const Pack<T, Width> pack = static_cast<const Pack<T, Width>*>(tensor)[index / Width];
#pragma unroll
    for (int32_t v = 0; v < Width; ++v) {
      values[v] = to_float(pack.values[v]);
    }
  }
}

// Comparisons, where fminf and fmaxf would drop a NaN.
__device__ __forceinline__ float activate(float x) {
  const float leaky = x < 0.0F ? kLeakySlope * x : x;
  const float raised = leaky < kClampLow ? kClampLow : leaky;
  return raised > kClampHigh ? kClampHigh : raised;
}

// With erf, as PyTorch's default.
__device__ __forceinline__ float gelu(float x) {
  constexpr float kRootOfHalf = 0.70710678118654752F;
  return 0.5F * x * (1.0F + erff(x * kRootOfHalf));
}

// A masked-out row, whose weights sum to 0, gives 0.
__device__ __forceinline__ float weighted_mean(float sum, float weight, float epsilon) {
  return weight == 0.0F ? 0.0F : sum / (epsilon + weight);
}

// A sum that carries the rounding error of its additions along.
class CompensatedSum {
 public:
  __device__ __forceinline__ void add(float value) {
    const float next = sum_ + value;
    const float added = next - sum_;
    lost_ += (sum_ - (next - added)) + (value - added);
    sum_ = next;
  }
  // An infinite sum leaves a NaN as its error.
  [[nodiscard]] __device__ __forceinline__ float value() const { return lost_ == lost_ ? sum_ + lost_ : sum_; }

 private:
  float sum_ = 0.0F;
  float lost_ = 0.0F;
};

}  // namespace pom::cuda
