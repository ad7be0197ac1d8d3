#include "sizes.h"

#include <atomic>

namespace pom::onnxruntime {
namespace {

constexpr size_t kRank = 3;

// A unique name for an unknown size, since ONNX Runtime assumes that sizes with the same name are equal, and takes a
// nameless unknown size for the number -1.
std::string unknown_size() {
  static std::atomic<uint64_t> count{0};
  return "pom_unknown_" + std::to_string(count++);
}

}  // namespace

Sizes::Sizes(const Ort::ConstTensorTypeAndShapeInfo& tensor) : sizes(tensor.GetShape()) {
  std::vector<const char*> symbols(sizes.size(), "");
  tensor.GetSymbolicDimensions(symbols.data(), symbols.size());
  names.assign(symbols.begin(), symbols.end());
  sizes.resize(kRank, -1);
  names.resize(kRank);
}

void Sizes::add(int64_t size) {
  sizes.push_back(size);
  names.emplace_back();
}

Ort::ConstTensorTypeAndShapeInfo input_of(const OrtApi& api, OrtShapeInferContext* context, size_t input) {
  OrtTensorTypeAndShapeInfo* info = nullptr;  // owned by the context
  Ort::ThrowOnError(api.ShapeInferContext_GetInputTypeShape(context, input, &info));
  return Ort::ConstTensorTypeAndShapeInfo(info);
}

void set_output(const OrtApi& api, OrtShapeInferContext* context, size_t output, ONNXTensorElementDataType type,
                Sizes shape) {
  std::vector<const char*> names;
  for (size_t i = 0; i < shape.sizes.size(); ++i) {
    if (shape.sizes[i] < 0 && shape.names[i].empty()) {
      shape.names[i] = unknown_size();
    }
    names.push_back(shape.names[i].c_str());
  }
  OrtTensorTypeAndShapeInfo* created = nullptr;
  Ort::ThrowOnError(api.CreateTensorTypeAndShapeInfo(&created));
  const Ort::TensorTypeAndShapeInfo info(created);
  Ort::ThrowOnError(api.SetTensorElementType(created, type));
  Ort::ThrowOnError(api.SetDimensions(created, shape.sizes.data(), shape.sizes.size()));
  Ort::ThrowOnError(api.SetSymbolicDimensions(created, names.data(), names.size()));
  Ort::ThrowOnError(api.ShapeInferContext_SetOutputTypeShape(context, output, created));
}

}  // namespace pom::onnxruntime
