#include "coefficients.h"

#include <algorithm>

#include "element.h"
#include "kernel.h"
#include "layout.h"

namespace pom::cpu {

Coefficients::Coefficients(const void* values, DataType type, int64_t channels, int64_t degree)
    : stride_(padded(channels) + kPadding), values_(new Line[static_cast<size_t>(degree * stride_ / kPadding)]) {
  for (int64_t k = 0; k < degree; ++k) {
    float* row = reinterpret_cast<float*>(values_.get()) + k * stride_;
    for (int64_t channel = 0; channel < channels; ++channel) {
      row[channel] = element(values, type, channel * degree + k);
    }
    std::fill(row + channels, row + stride_, 0.0F);
  }
}

std::unique_ptr<float[]> as_floats(const void* values, DataType type, int64_t count) {
  std::unique_ptr<float[]> floats(new float[static_cast<size_t>(count)]);
  for (int64_t i = 0; i < count; ++i) {
    floats[static_cast<size_t>(i)] = element(values, type, i);
  }
  return floats;
}

}  // namespace pom::cpu
