// Small tensors in the layout that the kernels read: float32, converted only once if they are constant.
#pragma once

#include <cstdint>
#include <memory>

#include "kernel.h"
#include "pom/aggregate.h"

namespace pom::cpu {

// (channels, degree) as (degree, stride), padded after the last channel as far as a kernel may read.
class Coefficients {
 public:
  Coefficients() = default;
  Coefficients(const void* values, DataType type, int64_t channels, int64_t degree);

  [[nodiscard]] bool empty() const { return values_ == nullptr; }
  [[nodiscard]] const float* values() const { return reinterpret_cast<const float*>(values_.get()); }
  [[nodiscard]] int64_t stride() const { return stride_; }

 private:
  // Aligned so that no vector spans two cache lines.
  struct alignas(64) Line {
    float values[kPadding];
  };

  int64_t stride_ = 0;
  std::unique_ptr<Line[]> values_;
};

[[nodiscard]] std::unique_ptr<float[]> as_floats(const void* values, DataType type, int64_t count);

}  // namespace pom::cpu
