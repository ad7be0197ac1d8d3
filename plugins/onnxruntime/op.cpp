#include "op.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "status.h"

namespace pom::onnxruntime {
namespace {

std::string mode_of(const OrtApi& api, OrtShapeInferContext* context) {
  const OrtOpAttr* attribute = nullptr;
  Ort::ThrowOnError(api.ShapeInferContext_GetAttribute(context, "mode", &attribute));
  size_t size = 0;
  // The first call only returns the size; if the text is empty, it succeeds.
  Ort::Status(api.ReadOpAttr(attribute, ORT_OP_ATTR_STRING, nullptr, 0, &size));
  std::string text(size, '\0');
  Ort::ThrowOnError(api.ReadOpAttr(attribute, ORT_OP_ATTR_STRING, text.data(), size, &size));
  return text.c_str();  // up to the terminating zero
}

// A unique name for an unknown size, since ONNX Runtime assumes that sizes with the same name are equal, and takes a
// nameless unknown size for the number -1.
std::string unknown_size() {
  static std::atomic<uint64_t> count{0};
  return "pom_unknown_" + std::to_string(count++);
}

// The sizes of a tensor, -1 where unknown, and their names.
struct Sizes {
  explicit Sizes(const Ort::ConstTensorTypeAndShapeInfo& tensor) : sizes(tensor.GetShape()) {
    std::vector<const char*> symbols(sizes.size(), "");
    tensor.GetSymbolicDimensions(symbols.data(), symbols.size());
    names.assign(symbols.begin(), symbols.end());
    sizes.resize(3, -1);  // the rank of an output, even if an input's rank is unknown
    names.resize(3);
  }
  void take(const Sizes& other, size_t dimension) {
    sizes[dimension] = other.sizes[dimension];
    names[dimension] = other.names[dimension];
  }

  std::vector<int64_t> sizes;
  std::vector<std::string> names;
};

Ort::ConstTensorTypeAndShapeInfo input_at(const OrtApi& api, OrtShapeInferContext* context, size_t input) {
  OrtTensorTypeAndShapeInfo* info = nullptr;  // owned by the context
  Ort::ThrowOnError(api.ShapeInferContext_GetInputTypeShape(context, input, &info));
  return Ort::ConstTensorTypeAndShapeInfo(info);
}

}  // namespace

// The output is like x, with the gate's tokens, or a single token for a mean without a gate. Nothing is inferred for
// the present: a node may omit it, and ONNX Runtime would write the shape of a missing output out of bounds.
void infer_shape(const OpSignature& signature, const OrtApi& api, OrtShapeInferContext* context) {
  const Ort::ConstTensorTypeAndShapeInfo x = input_at(api, context, kX);
  Sizes shape(x);
  if (signature.gated) {
    shape.take(Sizes(input_at(api, context, kGate)), 1);
  } else if (mode_of(api, context) == kModes[static_cast<size_t>(Mode::kMean)]) {
    shape.sizes[1] = 1;
    shape.names[1].clear();
  }
  std::vector<const char*> names;
  for (size_t i = 0; i < shape.sizes.size(); ++i) {
    if (shape.sizes[i] < 0 && shape.names[i].empty()) {
      shape.names[i] = unknown_size();
    }
    names.push_back(shape.names[i].c_str());
  }

  OrtTensorTypeAndShapeInfo* y = nullptr;
  Ort::ThrowOnError(api.CreateTensorTypeAndShapeInfo(&y));
  const Ort::TensorTypeAndShapeInfo output(y);
  Ort::ThrowOnError(api.SetTensorElementType(y, x.GetElementType()));
  Ort::ThrowOnError(api.SetDimensions(y, shape.sizes.data(), shape.sizes.size()));
  Ort::ThrowOnError(api.SetSymbolicDimensions(y, names.data(), names.size()));
  Ort::ThrowOnError(api.ShapeInferContext_SetOutputTypeShape(context, 0, y));
}

}  // namespace pom::onnxruntime
