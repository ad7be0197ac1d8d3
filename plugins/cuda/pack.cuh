// Packs of values that are read and written in one access, and their conversion to float and back.
#pragma once

#include "scalar.cuh"

namespace pom::cuda {

template <typename T, int32_t Width>
struct alignas(sizeof(T) * Width) Pack {
  T values[Width];
};

// Half types in pairs, one register each: nvcc would move single values to registers of their own as soon as the pack
// is loaded, and wait for the load.
template <typename T>
struct alignas(16) Pack<T, 8> {
  uint32_t pairs[4];
};

__device__ __forceinline__ void unpack_pair(uint32_t pair, __half, float* values) {
  __half2_raw raw;
  raw.x = static_cast<uint16_t>(pair);
  raw.y = static_cast<uint16_t>(pair >> 16);
  const float2 both = __half22float2(__half2(raw));
  values[0] = both.x;
  values[1] = both.y;
}

// A bfloat16 is the upper half of its float.
__device__ __forceinline__ void unpack_pair(uint32_t pair, __nv_bfloat16, float* values) {
  values[0] = bits_as<float>(pair << 16);
  values[1] = bits_as<float>(pair & 0xFFFF0000U);
}

__device__ __forceinline__ uint32_t pack_pair(float first, float second, __half) {
  const __half2_raw halves = __floats2half2_rn(first, second);
  return halves.x | static_cast<uint32_t>(halves.y) << 16;
}

__device__ __forceinline__ uint32_t pack_pair(float first, float second, __nv_bfloat16) {
  const __nv_bfloat162_raw halves = __floats2bfloat162_rn(first, second);
  return halves.x | static_cast<uint32_t>(halves.y) << 16;
}

// `type` is x's type.
template <typename T, int32_t Width>
__device__ __forceinline__ void unpack(const Pack<T, Width>& pack, DataType type, float (&values)[Width]) {
#pragma unroll
  for (int32_t v = 0; v < Width; ++v) {
    values[v] = to_float(pack.values[v], type);
  }
}

template <typename T>
__device__ __forceinline__ void unpack(const Pack<T, 8>& pack, DataType, float (&values)[8]) {
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) {
    unpack_pair(pack.pairs[i], T{}, values + 2 * i);
  }
}

// `values` starts with those of the pack.
template <typename T, int32_t Width>
__device__ __forceinline__ void round_to(const float* values, Pack<T, Width>* pack) {
#pragma unroll
  for (int32_t v = 0; v < Width; ++v) {
    round_to(values[v], &pack->values[v]);
  }
}

template <typename T>
__device__ __forceinline__ void round_to(const float* values, Pack<T, 8>* pack) {
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) {
    pack->pairs[i] = pack_pair(values[2 * i], values[2 * i + 1], T{});
  }
}

// Pack `index` of a tensor of x's type.
template <typename T, int32_t Width>
__device__ __forceinline__ Pack<T, Width> read_packed(const void* tensor, DataType type, int64_t index) {
  if constexpr (kIsAny<T>) {
    return {{read_value<T>(tensor, type, index)}};
  } else {
    return static_cast<const Pack<T, Width>*>(tensor)[index];
  }
}

// `values` starts with those of the pack.
template <typename T, int32_t Width>
__device__ __forceinline__ void write_packed(const float* values, void* tensor, DataType type, int64_t index) {
  if constexpr (kIsAny<T>) {
    write_value<T>(*values, tensor, type, index);
  } else {
    Pack<T, Width> rounded;
    round_to(values, &rounded);
    static_cast<Pack<T, Width>*>(tensor)[index] = rounded;
  }
}

// A pack that repeats one value.
template <typename T, int32_t Width>
__device__ __forceinline__ void fill(T value, Pack<T, Width>* pack) {
#pragma unroll
  for (int32_t v = 0; v < Width; ++v) {
    pack->values[v] = value;
  }
}

template <typename T>
__device__ __forceinline__ void fill(T value, Pack<T, 8>* pack) {
  const float both = to_float(value, DataType{});
#pragma unroll
  for (uint32_t& pair : pack->pairs) {
    pair = pack_pair(both, both, T{});
  }
}

// clamp(leaky_relu(x)) of a pack.
template <typename T, int32_t Width>
__device__ __forceinline__ void activate(const Pack<T, Width>& pack, DataType type, float (&h)[Width]) {
  unpack(pack, type, h);
#pragma unroll
  for (int32_t v = 0; v < Width; ++v) {
    h[v] = activate(h[v]);
  }
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
// Two at a time: from -10, where the slope reaches the lower bound (within one ulp), to 6.
static_assert(kClampLow == -0.1F && kLeakySlope == 0.01F && kClampHigh == 6.0F, "the constants below are theirs");

__device__ __forceinline__ uint32_t clamp_pair(uint32_t pair, __half) {
  asm("{max.NaN.f16x2 %0, %0, %1;\n\t min.NaN.f16x2 %0, %0, %2;}" : "+r"(pair) : "r"(0xC900C900U), "r"(0x46004600U));
  return pair;
}

__device__ __forceinline__ uint32_t clamp_pair(uint32_t pair, __nv_bfloat16) {
  asm("{max.NaN.bf16x2 %0, %0, %1;\n\t min.NaN.bf16x2 %0, %0, %2;}" : "+r"(pair) : "r"(0xC120C120U), "r"(0x40C040C0U));
  return pair;
}

template <typename T>
__device__ __forceinline__ void activate(const Pack<T, 8>& pack, DataType, float (&h)[8]) {
#pragma unroll
  for (int32_t i = 0; i < 4; ++i) {
    unpack_pair(clamp_pair(pack.pairs[i], T{}), T{}, h + 2 * i);
    h[2 * i] = larger(h[2 * i], kLeakySlope * h[2 * i]);
    h[2 * i + 1] = larger(h[2 * i + 1], kLeakySlope * h[2 * i + 1]);
  }
}
#endif

// The Width elements from `index` on of a tensor whose type is known at run time, with 16 bytes per access; 16-byte
// aligned unless Width is 1.
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
    unpack(read_packed<T, Width>(tensor, type, index / Width), type, values);
  }
}

}  // namespace pom::cuda
