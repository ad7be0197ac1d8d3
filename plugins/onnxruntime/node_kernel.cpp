#include "node_kernel.h"

#include <string>
#include <vector>

#include "attributes.h"
#include "cpu/aggregation.h"
#include "cpu/dispatch.h"
#include "inputs.h"
#include "status.h"

namespace pom::onnxruntime {
namespace {

// A node's or a call's inputs, in the order of its signature. Throws InvalidNode where they do not fit.
void describe_node(const OpSignature& signature, const Attributes& attributes, GateActivation activation,
                   const std::vector<TensorInfo>& inputs, Problem* problem, Gate* gate) {
  throw_if(signature.gated ? describe_gated(attributes, activation, inputs, problem, gate)
                           : describe(attributes, inputs, problem));
}

// A shape that fits each input: what is checked when the session is created are the types, since sizes are not known.
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
    default:
      return {1, channels / 2};
  }
}

DataType type_at(const OpSignature& signature, const Ort::ConstKernelInfo& info, size_t position) {
  const Ort::TypeInfo type_info = info.GetInputTypeInfo(position);
  return data_type(type_info.GetTensorTypeAndShapeInfo().GetElementType(), signature.input_names[position]);
}

const cpu::Kernel& dispatched_kernel() {
  const cpu::Dispatch dispatch = cpu::dispatch();
  throw_if(dispatch.error);
  return *dispatch.kernel;
}

struct PhaseRun {
  cpu::Aggregation& aggregation;
  const int phase;
};

void run_phase(cpu::Aggregation* aggregation, int phase, const Ort::KernelContext& context) {
  const int64_t threads = aggregation->threads(phase);
  if (threads <= 1) {
    aggregation->run(phase);
    return;
  }
  PhaseRun run{*aggregation, phase};
  // Whatever thread comes first takes what is next: the index says nothing.
  const auto work = [](void* phase_run, size_t) {
    const auto& each = *static_cast<const PhaseRun*>(phase_run);
    each.aggregation.run(each.phase);
  };
  constexpr size_t kBatchesAsThreads = 0;
  context.ParallelFor(work, static_cast<size_t>(threads), kBatchesAsThreads, &run);
}

}  // namespace

NodeKernel::NodeKernel(const OpSignature& signature, const Ort::ConstKernelInfo& info)
    : signature_(signature),
      attributes_(read_attributes(info)),
      activation_(signature.gated ? read_gate_activation(info) : GateActivation::kIdentity),
      kernel_(dispatched_kernel()) {
  if (signature.gated) {
    throw_if(validate_gated(attributes_));
  }
  check_types(info);
  prepare_constants(info);
}

void NodeKernel::check_types(const Ort::ConstKernelInfo& info) const {
  std::vector<TensorInfo> inputs(signature_.inputs);
  if (signature_.gated) {
    inputs[kGate] = {true, type_at(signature_, info, kGate), {1, 1, 1}};
    inputs[kGateBias] = {true, type_at(signature_, info, kGateBias), {1}};
  }
  bool tables_are_known = true;
  for (size_t input = 0; input < kInputs.size(); ++input) {
    const size_t position = signature_.position(input);
    if (position >= info.GetInputCount() || info.GetInputName(position).empty()) {
      continue;  // not given, and of no type
    }
    // A placeholder is known by its rank; what is of unknown rank, which reads as 0, is left to the run.
    const size_t rank = info.GetInputTypeInfo(position).GetTensorTypeAndShapeInfo().GetDimensionsCount();
    inputs[position] = {input < kRequiredInputs || rank > 1, type_at(signature_, info, position),
                        fitting_shape(attributes_, input)};
    tables_are_known = tables_are_known && (input < kCos || rank > 0);
  }
  if (!tables_are_known) {
    inputs.resize(signature_.position(kCos));  // each is checked against the other
  }
  Problem problem;
  Gate gate;
  describe_node(signature_, attributes_, activation_, inputs, &problem, &gate);
}

void NodeKernel::prepare_constants(const Ort::ConstKernelInfo& info) {
  const auto constant = [&](size_t position, size_t rank) -> Ort::ConstValue {
    int is_constant = 0;
    const Ort::ConstValue value = info.GetTensorConstantInput(position, &is_constant);
    return is_constant != 0 && value.GetTensorTypeAndShapeInfo().GetDimensionsCount() == rank ? value
                                                                                              : Ort::ConstValue{};
  };
  const size_t position = signature_.position(kCoefficients);
  if (const Ort::ConstValue value = constant(position, 2)) {
    const std::vector<int64_t> shape = value.GetTensorTypeAndShapeInfo().GetShape();
    coefficients_ =
        cpu::Coefficients(value.GetTensorRawData(), type_at(signature_, info, position), shape[0], shape[1]);
  }
  if (!signature_.gated) {
    return;
  }
  if (const Ort::ConstValue value = constant(kGateBias, 1)) {
    const auto count = static_cast<int64_t>(value.GetTensorTypeAndShapeInfo().GetElementCount());
    gate_bias_ = cpu::as_floats(value.GetTensorRawData(), type_at(signature_, info, kGateBias), count);
  }
}

void NodeKernel::compute(const Ort::KernelContext& context) const {
  const Inputs inputs(signature_, context);
  Problem problem;
  Gate gate;
  describe_node(signature_, attributes_, activation_, inputs.infos(), &problem, &gate);

  const auto data = [&](Input input) { return inputs.data(signature_.position(input)); };
  cpu::Tensors tensors{data(kX), data(kMask), data(kCos), data(kSin), nullptr, nullptr, nullptr};
  std::unique_ptr<float[]> bias;
  if (signature_.gated) {
    if (gate_bias_ == nullptr) {
      bias = cpu::as_floats(inputs.data(kGateBias), gate.bias_type, gate.gates);
    }
    tensors.gate = inputs.data(kGate);
    tensors.gate_bias = bias ? bias.get() : gate_bias_.get();
  }
  cpu::Coefficients coefficients;
  if (attributes_.form == Form::kPower && coefficients_.empty()) {
    coefficients = cpu::Coefficients(data(kCoefficients), problem.coefficient_type, problem.channels, problem.degree);
  }
  const int64_t tokens = signature_.gated ? gate.tokens : problem.output_tokens();
  Ort::UnownedValue output = context.GetOutput(0, {problem.batch, tokens, problem.channels});
  tensors.y = output.GetTensorMutableRawData();
  cpu::Aggregation aggregation(kernel_, problem, signature_.gated ? &gate : nullptr, tensors,
                               coefficients_.empty() ? coefficients : coefficients_);
  for (int phase = 0; phase < aggregation.phases(); ++phase) {
    run_phase(&aggregation, phase, context);
  }
}

OrtStatus* NodeKernel::ComputeV2(OrtKernelContext* context) const noexcept {
  return status_of(Ort::GetApi(), signature_.name, [&] { compute(Ort::KernelContext(context)); });
}

}  // namespace pom::onnxruntime
