#include "fused_op.h"

#include <cstdint>
#include <vector>

#include "sizes.h"

namespace pom::onnxruntime {
namespace {

// Reads a list of numbers; empty if the attribute is.
template <typename Number>
std::vector<Number> read_list(const OrtApi& api, OrtShapeInferContext* context, const char* name, OrtOpAttrType type) {
  const OrtOpAttr* attribute = nullptr;
  Ort::ThrowOnError(api.ShapeInferContext_GetAttribute(context, name, &attribute));
  size_t bytes = 0;
  // The first call only returns the size, and fails unless it is 0.
  Ort::Status(api.ReadOpAttr(attribute, type, nullptr, 0, &bytes));
  std::vector<Number> numbers(bytes / sizeof(Number));
  if (!numbers.empty()) {
    Ort::ThrowOnError(api.ReadOpAttr(attribute, type, numbers.data(), bytes, &bytes));
  }
  return numbers;
}

}  // namespace

void infer_fused_shape(const OrtApi& api, OrtShapeInferContext* context) {
  const auto code = read_list<int64_t>(api, context, kProgram, ORT_OP_ATTR_INTS);
  const auto constants = read_list<float>(api, context, kConstants, ORT_OP_ATTR_FLOATS);
  size_t inputs = 0;
  Ort::ThrowOnError(api.ShapeInferContext_GetInputCount(context, &inputs));
  const int64_t outputs = code.size() > 2 ? code[2] : 0;
  const cpu::Program program(code, constants, static_cast<int64_t>(inputs), outputs);
  const std::vector<MatrixInput> matrices = matrix_inputs(program);
  if (matrices.empty()) {
    throw InvalidNode("the program reads no activations");
  }
  const Sizes x(input_of(api, context, static_cast<size_t>(matrices.front().value)));
  Sizes batch;
  batch.add(-1);
  batch.take(x, 0);
  for (size_t i = 0; i < program.output_slots.size(); ++i) {
    if (const int64_t value = program.output_slots[i]; value != cpu::kNoValue) {
      Sizes shape(x);
      shape.sizes[2] = program.width(value);
      shape.names[2].clear();
      set_output(api, context, i, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, shape);
    }
  }
  for (const cpu::Instruction& instruction : program.instructions) {
    if (instruction.present_state != cpu::kNoValue) {
      Sizes shape(batch);
      if (instruction.layers > 0) {
        shape.add(instruction.layers);
      }
      shape.add(kStateRows);
      shape.add(instruction.outputs);
      set_output(api, context, static_cast<size_t>(instruction.present_state), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                 shape);
    }
    if (instruction.present_length != cpu::kNoValue) {
      set_output(api, context, static_cast<size_t>(instruction.present_length), ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
                 batch);
    }
  }
}

}  // namespace pom::onnxruntime
