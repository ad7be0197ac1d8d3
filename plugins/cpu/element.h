// Elements of tensors whose type is only known at run time. Not for the files compiled with instruction-set flags (see
// kernel.h).
#pragma once

#include "half.h"
#include "pom/aggregate.h"

namespace pom::cpu {

inline int64_t element_size(DataType type) {
  switch (type) {
    case DataType::kFloat32:
      return 4;
    case DataType::kFloat16:
    case DataType::kBFloat16:
      return 2;
    case DataType::kBool:
      return 1;
    case DataType::kInt64:
      return 8;
  }
  return 0;
}

inline const void* element_at(const void* data, DataType type, int64_t index) {
  return static_cast<const char*>(data) + index * element_size(type);
}

inline void* element_at(void* data, DataType type, int64_t index) {
  return static_cast<char*>(data) + index * element_size(type);
}

inline float element(const void* data, DataType type, int64_t index) {
  switch (type) {
    case DataType::kFloat16:
      return to_float(static_cast<const Half*>(data)[index]);
    case DataType::kBFloat16:
      return to_float(static_cast<const BFloat16*>(data)[index]);
    case DataType::kBool:
      return static_cast<const uint8_t*>(data)[index] != 0 ? 1.0F : 0.0F;
    default:
      return static_cast<const float*>(data)[index];
  }
}

inline void set_element(void* data, DataType type, int64_t index, float value) {
  switch (type) {
    case DataType::kFloat16:
      static_cast<Half*>(data)[index] = to_half(value);
      break;
    case DataType::kBFloat16:
      static_cast<BFloat16*>(data)[index] = to_bfloat16(value);
      break;
    default:
      static_cast<float*>(data)[index] = value;
  }
}

}  // namespace pom::cpu
