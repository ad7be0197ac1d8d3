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
  // The first call only asks for the size; where the text is empty it succeeds.
  Ort::Status(api.ReadOpAttr(attribute, ORT_OP_ATTR_STRING, nullptr, 0, &size));
  std::string text(size, '\0');
  Ort::ThrowOnError(api.ReadOpAttr(attribute, ORT_OP_ATTR_STRING, text.data(), size, &size));
  return text.c_str();  // up to the terminating zero
}

// A name for a size that nothing is known of. Unlike any other: ONNX Runtime takes sizes of one name for equal, and
// a nameless unknown size for the number -1.
std::string unknown_size() {
  static std::atomic<uint64_t> count{0};
  return "pom_unknown_" + std::to_string(count++);
}

// y is like x, except that a mean has one token. It has three dimensions even where x's are unknown.
void infer_shape(const OrtApi& api, OrtShapeInferContext* context) {
  OrtTensorTypeAndShapeInfo* x = nullptr;  // owned by the context
  Ort::ThrowOnError(api.ShapeInferContext_GetInputTypeShape(context, 0, &x));
  const Ort::ConstTensorTypeAndShapeInfo input(x);
  std::vector<int64_t> shape = input.GetShape();
  std::vector<const char*> x_names(shape.size(), "");
  input.GetSymbolicDimensions(x_names.data(), x_names.size());
  std::vector<std::string> names(x_names.begin(), x_names.end());
  shape.resize(3, -1);
  names.resize(3);
  if (mode_of(api, context) == kModes[static_cast<size_t>(Mode::kMean)]) {
    shape[1] = 1;
    names[1].clear();
  }
  std::vector<const char*> y_names;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] < 0 && names[i].empty()) {
      names[i] = unknown_size();
    }
    y_names.push_back(names[i].c_str());
  }

  OrtTensorTypeAndShapeInfo* y = nullptr;
  Ort::ThrowOnError(api.CreateTensorTypeAndShapeInfo(&y));
  const Ort::TensorTypeAndShapeInfo output(y);
  Ort::ThrowOnError(api.SetTensorElementType(y, input.GetElementType()));
  Ort::ThrowOnError(api.SetDimensions(y, shape.data(), shape.size()));
  Ort::ThrowOnError(api.SetSymbolicDimensions(y, y_names.data(), y_names.size()));
  Ort::ThrowOnError(api.ShapeInferContext_SetOutputTypeShape(context, 0, y));
}

}  // namespace

PolynomialAggregationOp::PolynomialAggregationOp() {
  // In place of CustomOpBase's, which lets exceptions pass through C.
  OrtCustomOp::InferOutputShapeFn = [](const OrtCustomOp*, OrtShapeInferContext* context) {
    const OrtApi& api = Ort::GetApi();
    return status_of(api, [&] { infer_shape(api, context); });
  };
}

OrtStatus* PolynomialAggregationOp::CreateKernelV2(const OrtApi& api, const OrtKernelInfo* info,
                                                   void** kernel) const noexcept {
  return status_of(api, [&] { *kernel = std::make_unique<NodeKernel>(Ort::ConstKernelInfo(info)).release(); });
}

}  // namespace pom::onnxruntime
