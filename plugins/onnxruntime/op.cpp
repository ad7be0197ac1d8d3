#include "op.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "sizes.h"
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

}  // namespace

// The output is like x, with the gate's tokens, or a single token for a mean without a gate. Nothing is inferred for
// the present: a node may omit it, and ONNX Runtime would write the shape of a missing output out of bounds.
void infer_shape(const OpSignature& signature, const OrtApi& api, OrtShapeInferContext* context) {
  const Ort::ConstTensorTypeAndShapeInfo x = input_of(api, context, kX);
  Sizes shape(x);
  if (signature.gated) {
    shape.take(Sizes(input_of(api, context, kGate)), 1);
  } else if (mode_of(api, context) == kModes[static_cast<size_t>(Mode::kMean)]) {
    shape.sizes[1] = 1;
    shape.names[1].clear();
  }
  set_output(api, context, 0, x.GetElementType(), shape);
}

}  // namespace pom::onnxruntime
