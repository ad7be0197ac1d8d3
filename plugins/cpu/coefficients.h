// Small tensors in the shape in which the kernels read them: float32, made once where they are constant.
#pragma once

#include <cstdint>
#include <memory>

#include "kernel.h"
#include "pom/aggregate.h"

namespace pom::cpu {

// (channels, degree) as (degree, stride), with as much space behind the last channel as a kernel may read.
class Coefficients {
 public:
  Coefficients() = default;
  Coefficients(const void* values, DataType type, int64_t channels, int64_t degree);

  [[nodiscard]] bool empty() const { return values_ == nullptr; }
  [[nodiscard]] const float* values() const { return reinterpret_cast<const float*>(values_.get()); }
  [[nodiscard]] int64_t stride() const { return stride_; }

 private:
  // So that no vector of them lies in two cache lines.
  struct alignas(64) Line {
    float values[kPadding];
  };

  int64_t stride_ = 0;
  std::unique_ptr<Line[]> values_;
};

[[nodiscard]] std::unique_ptr<float[]> as_floats(const void* values, DataType type, int64_t count);

}  // namespace pom::cpu
