#include "node.h"

#include <string>

#include "attributes.h"
#include "inputs.h"
#include "status.h"

namespace pom::onnxruntime {
namespace {

// A valid shape for each input: when a session is created, only the types are checked, since sizes are unknown.
std::vector<int64_t> fitting_shape(const Attributes& attributes, size_t input) {
  const bool product = attributes.form == Form::kProduct;
  const int64_t channels = product ? attributes.degree : int64_t{2} * attributes.rotary_blocks;
  switch (input) {
    case kX:
      return {1, 1, channels};
    case kCoefficients:
      return product ? std::vector<int64_t>{1} : std::vector<int64_t>{channels, 1};
    case kMask:
      return {1, 1};
    case kPastState:
      return {1, kStateRows, channels};
    case kPastLength:
      return {1};
    default:
      return {1, channels / 2};
  }
}

std::optional<GateActivation> activation_of(const OpSignature& signature, const Ort::ConstKernelInfo& info) {
  return signature.gated ? std::make_optional(read_gate_activation(info)) : std::nullopt;
}

}  // namespace

std::array<void*, kOutputs.size()> make_outputs(const OpCall& call, const Ort::KernelContext& context) {
  const auto& [problem, gate] = call;
  const size_t count = context.GetOutputCount();
  const auto make = [&](size_t position, const std::vector<int64_t>& shape) -> void* {
    Ort::UnownedValue output = position < count ? context.GetOutput(position, shape) : Ort::UnownedValue{};
    return output ? output.GetTensorMutableRawData() : nullptr;
  };
  return {make(kY, {problem.batch, output_tokens(problem, gate), problem.channels}),
          make(kPresentState, {problem.batch, kStateRows, problem.channels}), make(kPresentLength, {problem.batch})};
}

DataType type_at(const OpSignature& signature, const Ort::ConstKernelInfo& info, size_t position) {
  const Ort::TypeInfo type_info = info.GetInputTypeInfo(position);
  return data_type(type_info.GetTensorTypeAndShapeInfo().GetElementType(), signature.input_names[position]);
}

Node::Node(const OpSignature& signature, const Ort::ConstKernelInfo& info)
    : signature_(signature), attributes_{read_attributes(info), activation_of(signature, info)} {
  throw_if(validate(attributes_));
  check_types(info);
  check_outputs(info);
}

OpCall Node::describe(const std::vector<TensorInfo>& inputs) const {
  OpCall call;
  throw_if(pom::describe(attributes_, inputs, &call));
  return call;
}

void Node::check_types(const Ort::ConstKernelInfo& info) const {
  std::vector<TensorInfo> inputs(signature_.inputs);
  if (attributes_.activation) {
    inputs[kGate] = {true, type_at(signature_, info, kGate), {1, 1, 1}};
    inputs[kGateBias] = {true, type_at(signature_, info, kGateBias), {1}};
  }
  bool tables_are_known = true;
  for (size_t input = 0; input < kInputs.size(); ++input) {
    const size_t at = signature_.position(input);
    if (at >= info.GetInputCount() || info.GetInputName(at).empty()) {
      continue;  // not given, and without a type
    }
    // A placeholder is identified by its rank. An input of unknown rank, which is reported as 0, is checked in the
    // call.
    const size_t rank = info.GetInputTypeInfo(at).GetTensorTypeAndShapeInfo().GetDimensionsCount();
    const bool is_table = input == kCos || input == kSin;
    const bool is_given = input < kRequiredInputs || input > kSin || rank > 1;
    inputs[at] = {is_given, type_at(signature_, info, at), fitting_shape(attributes(), input)};
    tables_are_known = tables_are_known && (!is_table || rank > 0);
  }
  if (!tables_are_known) {  // they are checked against each other
    inputs[signature_.position(kCos)].given = false;
    inputs[signature_.position(kSin)].given = false;
  }
  static_cast<void>(describe(inputs));
}

// Outputs that nobody uses may be omitted.
void Node::check_outputs(const Ort::ConstKernelInfo& info) const {
  for (size_t i = kPresentState; i < info.GetOutputCount(); ++i) {
    if (!attributes().stateful && !info.GetOutputName(i).empty()) {
      throw InvalidNode("present_state and present_length go with stateful 1");
    }
  }
}

}  // namespace pom::onnxruntime
