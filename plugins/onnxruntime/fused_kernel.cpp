#include "fused_kernel.h"

#include <algorithm>
#include <new>
#include <string>
#include <utility>

#include "cpu/element.h"
#include "cpu_kernel.h"
#include "fused_op.h"
#include "inputs.h"
#include "status.h"

namespace pom::onnxruntime {
namespace {

cpu::Program read_program(const Ort::ConstKernelInfo& info) {
  return cpu::Program(info.GetAttributes<int64_t>(kProgram), info.GetAttributes<float>(kConstants),
                      static_cast<int64_t>(info.GetInputCount()), static_cast<int64_t>(info.GetOutputCount()));
}

OrtAllocator* arena_of(const Ort::ConstKernelInfo& info) {
  OrtAllocator* allocator = nullptr;
  Ort::ThrowOnError(Ort::GetApi().KernelInfoGetAllocator(info, OrtMemTypeDefault, &allocator));
  return allocator;
}

std::string input_name(int64_t value) { return "input " + std::to_string(value); }

// A constant input, which must hold so many bytes.
Ort::ConstValue constant_input(const Ort::ConstKernelInfo& info, int64_t value) {
  int is_constant = 0;
  const Ort::ConstValue found = info.GetTensorConstantInput(static_cast<size_t>(value), &is_constant);
  if (is_constant == 0) {
    throw InvalidNode(input_name(value) + " must be constant");
  }
  return found;
}

void check_constant(const Ort::ConstKernelInfo& info, int64_t value, ONNXTensorElementDataType type, int64_t count) {
  if (value == cpu::kNoValue) {
    return;
  }
  const auto tensor = constant_input(info, value).GetTensorTypeAndShapeInfo();
  if (tensor.GetElementType() != type || static_cast<int64_t>(tensor.GetElementCount()) != count) {
    throw InvalidNode(input_name(value) + " must have " + std::to_string(count) + " elements of ONNX element type " +
                      std::to_string(type) + ", got " + std::to_string(tensor.GetElementCount()) + " of type " +
                      std::to_string(tensor.GetElementType()));
  }
}

// What a constant of an instruction must hold.
void check_constants_of(const cpu::Instruction& instruction, const Ort::ConstKernelInfo& info) {
  using cpu::kTileOutputs;
  const int64_t width = instruction.groups * instruction.outputs;
  const int64_t tiles = cpu::divide_up(instruction.outputs, kTileOutputs);
  switch (instruction.operation) {
    case cpu::Operation::kProduct:
    case cpu::Operation::kProduct8:
      check_constant(info, instruction.weights, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, tiles * instruction.tile_bytes());
      break;
    case cpu::Operation::kGroups:
      check_constant(info, instruction.weights, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                     instruction.groups * tiles * instruction.inputs * kTileOutputs);
      break;
    case cpu::Operation::kAggregate:
      return;
    default:
      check_constant(info, instruction.weights, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, width);
  }
  check_constant(info, instruction.bias, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, width);
}

}  // namespace

Scratch::Scratch(OrtAllocator* allocator, size_t bytes)
    : allocator_(*allocator), memory_(allocator_.Alloc(allocator, bytes + kAlignment)) {
  if (memory_ == nullptr) {
    throw std::bad_alloc();
  }
  const auto address = reinterpret_cast<uintptr_t>(memory_);
  next_ = static_cast<unsigned char*>(memory_) + (kAlignment - address % kAlignment) % kAlignment;
}

unsigned char* Scratch::take(int64_t bytes) {
  unsigned char* const taken = next_;
  next_ += padded(bytes);
  return taken;
}

std::vector<MatrixInput> matrix_inputs(const cpu::Program& program) {
  std::vector<MatrixInput> found;
  const auto add = [&](int64_t value, int64_t width) {
    const bool known = std::any_of(found.begin(), found.end(), [&](const auto& each) { return each.value == value; });
    if (value != cpu::kNoValue && !program.is_slot(value) && !known) {
      found.push_back({value, width});
    }
  };
  for (const cpu::Instruction& instruction : program.instructions) {
    if (instruction.operation == cpu::Operation::kAggregate) {
      add(instruction.x, instruction.outputs);
    } else {
      add(instruction.x, instruction.groups * instruction.inputs);
      add(instruction.multiplied, instruction.outputs);
      add(instruction.added, instruction.groups * instruction.outputs);
    }
  }
  return found;
}

FusedKernel::FusedKernel(const Ort::ConstKernelInfo& info)
    : kernel_(dispatched_kernel()),
      allocator_(arena_of(info)),
      program_(read_program(info)),
      matrices_(matrix_inputs(program_)),
      aggregations_(static_cast<size_t>(program_.aggregations)) {
  if (matrices_.empty()) {
    throw InvalidNode("the program reads no activations");
  }
  for (const cpu::Instruction& instruction : program_.instructions) {
    check_constants_of(instruction, info);
    if (instruction.operation == cpu::Operation::kAggregate) {
      prepare_aggregation(instruction, info);
    }
  }
}

void FusedKernel::prepare_aggregation(const cpu::Instruction& instruction, const Ort::ConstKernelInfo& info) {
  Constants& constants = aggregations_[static_cast<size_t>(instruction.aggregation)];
  const bool gated = instruction.attributes.activation.has_value();
  const auto constant = [&](size_t position, const char* name) {
    const int64_t value = position < instruction.op_inputs.size() ? instruction.op_inputs[position] : cpu::kNoValue;
    if (value == cpu::kNoValue || program_.is_slot(value)) {
      throw InvalidNode(std::string(name) + " of an aggregation must be a constant input");
    }
    const Ort::ConstValue found = constant_input(info, value);
    if (found.GetTensorTypeAndShapeInfo().GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
      throw InvalidNode(std::string(name) + " of an aggregation must be float32");
    }
    return found;
  };
  if (instruction.attributes.aggregation.form == Form::kPower) {
    const Ort::ConstValue value = constant(position_of(gated, kCoefficients), "coefficients");
    const std::vector<int64_t> shape = value.GetTensorTypeAndShapeInfo().GetShape();
    if (shape.size() != 2 || shape[0] != instruction.outputs) {
      throw InvalidNode("coefficients must be (" + std::to_string(instruction.outputs) + ", degree), got shape " +
                        written(shape));
    }
    throw_if(validate_columns(shape[1]));
    constants.coefficients = cpu::Coefficients(value.GetTensorRawData(), DataType::kFloat32, shape[0], shape[1]);
  }
  if (gated) {
    const Ort::ConstValue value = constant(kGateBias, "gate_bias");
    const auto count = static_cast<int64_t>(value.GetTensorTypeAndShapeInfo().GetElementCount());
    constants.gate_bias = cpu::as_floats(value.GetTensorRawData(), DataType::kFloat32, count);
  }
}

FusedKernel::Extent FusedKernel::sizes_of(const Ort::KernelContext& context) const {
  Extent sizes{-1, -1};
  for (const MatrixInput& each : matrices_) {
    const auto tensor = context.GetInput(static_cast<size_t>(each.value)).GetTensorTypeAndShapeInfo();
    const std::vector<int64_t> shape = tensor.GetShape();
    if (sizes.batch < 0 && shape.size() == 3) {
      sizes = {shape[0], shape[1]};
    }
    if (tensor.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT ||
        shape != std::vector<int64_t>{sizes.batch, sizes.tokens, each.width}) {
      throw InvalidNode(input_name(each.value) + " must be float32 and (batch, tokens, " + std::to_string(each.width) +
                        ") like the others, got shape " + written(shape));
    }
  }
  return sizes;
}

cpu::AggregationCall FusedKernel::describe(const cpu::Instruction& instruction, const Extent& sizes,
                                           const Ort::KernelContext& context) const {
  std::vector<TensorInfo> inputs;
  for (const int64_t value : instruction.op_inputs) {
    TensorInfo& input = inputs.emplace_back();
    if (value == cpu::kNoValue) {
      continue;
    }
    if (program_.is_slot(value)) {
      input = {true, DataType::kFloat32, {sizes.batch, sizes.tokens, program_.width(value)}};
    } else {
      const auto tensor = context.GetInput(static_cast<size_t>(value)).GetTensorTypeAndShapeInfo();
      input = {true, data_type(tensor.GetElementType(), "an input"), tensor.GetShape()};
    }
  }
  const bool gated = instruction.attributes.activation.has_value();
  if (const size_t at = position_of(gated, kPastState); instruction.layers > 0 && at < inputs.size()) {
    std::vector<int64_t>& shape = inputs[at].shape;
    if (shape != std::vector<int64_t>{sizes.batch, instruction.layers, kStateRows, instruction.outputs}) {
      throw InvalidNode("the states of " + std::to_string(instruction.layers) + " layers must be (" +
                        std::to_string(sizes.batch) + ", " + std::to_string(instruction.layers) + ", " +
                        std::to_string(kStateRows) + ", " + std::to_string(instruction.outputs) + "), got shape " +
                        written(shape));
    }
    shape = {sizes.batch, kStateRows, instruction.outputs};
  }
  const Constants& constants = aggregations_[static_cast<size_t>(instruction.aggregation)];
  cpu::AggregationCall described;
  throw_if(pom::describe(instruction.attributes, inputs, &described.call));
  const Problem& problem = described.call.problem;
  // Slots have a row for each token, so an output of fewer tokens cannot be one of them.
  if (problem.batch != sizes.batch || output_tokens(problem, described.call.gate) != sizes.tokens ||
      problem.channels != instruction.outputs || problem.data_type != DataType::kFloat32) {
    throw InvalidNode("an aggregation in a program must be float32, with an output of (" + std::to_string(sizes.batch) +
                      ", " + std::to_string(sizes.tokens) + ", " + std::to_string(instruction.outputs) + ")");
  }
  described.coefficients = &constants.coefficients;
  described.gate_bias = constants.gate_bias.get();
  if (problem.attributes.stateful) {
    const int64_t value = instruction.op_inputs[position_of(gated, kPastLength)];
    const Ort::ConstValue lengths = context.GetInput(static_cast<size_t>(value));
    throw_if(validate_lengths(problem, lengths.GetTensorData<int64_t>()));
  }
  const auto output = [&](int64_t position, const std::vector<int64_t>& shape) -> void* {
    Ort::UnownedValue made =
        position == cpu::kNoValue ? Ort::UnownedValue{} : context.GetOutput(static_cast<size_t>(position), shape);
    return made ? made.GetTensorMutableRawData() : nullptr;
  };
  std::vector<int64_t> states{problem.batch, kStateRows, problem.channels};
  if (instruction.layers > 0) {
    states.insert(states.begin() + 1, instruction.layers);
  }
  described.present_state = static_cast<float*>(output(instruction.present_state, states));
  described.present_length = static_cast<int64_t*>(output(instruction.present_length, {problem.batch}));
  return described;
}

// The inputs, and the slots that are outputs; the other slots are null.
cpu::Memory FusedKernel::given_memory(const Extent& sizes, const Ort::KernelContext& context) const {
  cpu::Memory memory;
  for (int64_t i = 0; i < program_.inputs; ++i) {
    memory.inputs.push_back(context.GetInput(static_cast<size_t>(i)).GetTensorRawData());
  }
  memory.slots.resize(program_.widths.size());
  for (size_t i = 0; i < program_.output_slots.size(); ++i) {
    if (const int64_t value = program_.output_slots[i]; value != cpu::kNoValue) {
      const std::vector<int64_t> shape{sizes.batch, sizes.tokens, program_.width(value)};
      if (Ort::UnownedValue output = context.GetOutput(i, shape)) {
        memory.slots[static_cast<size_t>(value - program_.inputs)] = output.GetTensorMutableData<float>();
      }
    }
  }
  return memory;
}

// The other slots and the buffers.
std::unique_ptr<Scratch> FusedKernel::add_scratch(int64_t rows, cpu::Memory* memory) const {
  const auto slot_bytes = [&](size_t i) { return rows * program_.widths[i] * int64_t{sizeof(float)}; };
  size_t bytes = 0;
  for (size_t i = 0; i < memory->slots.size(); ++i) {
    bytes += memory->slots[i] == nullptr ? Scratch::padded(slot_bytes(i)) : 0;
  }
  for (const int64_t each : program_.buffer_bytes) {
    bytes += Scratch::padded(rows * each);
  }
  auto scratch = std::make_unique<Scratch>(allocator_.get(), bytes);
  for (size_t i = 0; i < memory->slots.size(); ++i) {
    if (memory->slots[i] == nullptr) {
      memory->slots[i] = reinterpret_cast<float*>(scratch->take(slot_bytes(i)));
    }
  }
  for (const int64_t each : program_.buffer_bytes) {
    memory->buffers.push_back(scratch->take(rows * each));
  }
  return scratch;
}

void FusedKernel::compute(const Ort::KernelContext& context) const {
  const Extent sizes = sizes_of(context);
  cpu::Memory memory = given_memory(sizes, context);
  std::vector<cpu::AggregationCall> aggregations(aggregations_.size());
  for (const cpu::Instruction& instruction : program_.instructions) {
    if (instruction.operation == cpu::Operation::kAggregate) {
      aggregations[static_cast<size_t>(instruction.aggregation)] = describe(instruction, sizes, context);
    }
  }
  if (sizes.batch == 0) {
    return;
  }
  const int64_t rows = sizes.batch * sizes.tokens;
  const std::unique_ptr<Scratch> scratch = add_scratch(rows, &memory);
  cpu::Run run(program_, kernel_, rows, std::move(memory), aggregations);
  if (run.threads() <= 1) {
    run.work();
    return;
  }
  const auto work = [](void* running, size_t) { static_cast<cpu::Run*>(running)->work(); };
  constexpr size_t kBatchesAsThreads = 0;
  context.ParallelFor(work, static_cast<size_t>(run.threads()), kBatchesAsThreads, &run);
}

OrtStatus* FusedKernel::ComputeV2(OrtKernelContext* context) const noexcept {
  return status_of(Ort::GetApi(), kFusedOpName, [&] { compute(Ort::KernelContext(context)); });
}

}  // namespace pom::onnxruntime
