// The sizes of tensors when shapes are inferred, as far as they are known.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace pom::onnxruntime {

// The sizes of a tensor, -1 where unknown, and their names.
struct Sizes {
  Sizes() = default;
  // With the rank that the ops require, even if the tensor's is unknown.
  explicit Sizes(const Ort::ConstTensorTypeAndShapeInfo& tensor);

  void add(int64_t size);
  void take(const Sizes& other, size_t dimension) {
    sizes[dimension] = other.sizes[dimension];
    names[dimension] = other.names[dimension];
  }

  std::vector<int64_t> sizes;
  std::vector<std::string> names;
};

[[nodiscard]] Ort::ConstTensorTypeAndShapeInfo input_of(const OrtApi& api, OrtShapeInferContext* context, size_t input);

// Sets an output's type and sizes. Unknown sizes without a name get one.
void set_output(const OrtApi& api, OrtShapeInferContext* context, size_t output, ONNXTensorElementDataType type,
                Sizes shape);

}  // namespace pom::onnxruntime
