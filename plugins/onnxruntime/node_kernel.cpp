#include "node_kernel.h"

#include <string>
#include <vector>

#include "attributes.h"
#include "cpu/aggregation.h"
#include "cpu/dispatch.h"
#include "status.h"

namespace pom::onnxruntime {
namespace {

DataType data_type(ONNXTensorElementDataType type, const char* tensor) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return DataType::kFloat32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return DataType::kFloat16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL:
      return DataType::kBool;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      throw InvalidNode(std::string(tensor) + " is bfloat16, which the CPU kernels don't take: use float32 or float16");
    default:
      throw InvalidNode(std::string(tensor) + " is of ONNX element type " + std::to_string(type) +
                        ": the op takes float32 and float16, and bool as a mask");
  }
}

// Check what is known when the session is created. Sizes are not, so these are some that fit.
void check_types(const Attributes& attributes, const Ort::ConstKernelInfo& info) {
  const auto type_of = [&](size_t input) {
    return data_type(info.GetInputTypeInfo(input).GetTensorTypeAndShapeInfo().GetElementType(), kInputs[input]);
  };
  Problem problem;
  problem.attributes = attributes;
  problem.batch = problem.tokens = problem.channels = problem.degree = problem.mask_batch = 1;
  problem.data_type = type_of(0);
  problem.coefficient_type = type_of(1);
  problem.has_mask = info.GetInputCount() > kRequiredInputs;
  problem.mask_type = problem.has_mask ? type_of(kRequiredInputs) : DataType::kBool;
  throw_if(validate(problem));
}

std::string written(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t size : shape) {
    text += (text.empty() ? "" : ", ") + std::to_string(size);
  }
  return "(" + text + ")";
}

void set_x(Problem* problem, const std::vector<int64_t>& shape) {
  if (shape.size() != 3) {
    throw InvalidNode("x must be (batch, tokens, channels), got shape " + written(shape));
  }
  problem->batch = shape[0];
  problem->tokens = shape[1];
  problem->channels = shape[2];
}

void set_coefficients(Problem* problem, const std::vector<int64_t>& shape) {
  if (shape.size() != 2 || shape[0] != problem->channels) {
    throw InvalidNode("coefficients must be (" + std::to_string(problem->channels) + ", degree) for x's " +
                      std::to_string(problem->channels) + " channels, got shape " + written(shape));
  }
  problem->degree = shape[1];
}

void set_mask(Problem* problem, const std::vector<int64_t>& shape) {
  if (shape.size() != 2 || shape[1] != problem->tokens) {
    throw InvalidNode("mask must be (1 or " + std::to_string(problem->batch) + ", " + std::to_string(problem->tokens) +
                      ") for x's batch and tokens, got shape " + written(shape));
  }
  problem->has_mask = true;
  problem->mask_batch = shape[0];
}

// What the call is; throws InvalidNode where the tensors don't fit each other.
Problem describe(const Attributes& attributes, Ort::ConstValue x, Ort::ConstValue coefficients, Ort::ConstValue mask) {
  Problem problem;
  problem.attributes = attributes;
  const auto x_info = x.GetTensorTypeAndShapeInfo();
  problem.data_type = data_type(x_info.GetElementType(), kInputs[0]);
  set_x(&problem, x_info.GetShape());
  const auto coefficients_info = coefficients.GetTensorTypeAndShapeInfo();
  problem.coefficient_type = data_type(coefficients_info.GetElementType(), kInputs[1]);
  set_coefficients(&problem, coefficients_info.GetShape());
  if (mask) {
    const auto mask_info = mask.GetTensorTypeAndShapeInfo();
    problem.mask_type = data_type(mask_info.GetElementType(), kInputs[2]);
    set_mask(&problem, mask_info.GetShape());
  }
  throw_if(validate(problem));
  return problem;
}

const cpu::Kernel& dispatched_kernel() {
  const cpu::Dispatch dispatch = cpu::dispatch();
  throw_if(dispatch.error);
  return *dispatch.kernel;
}

struct PhaseRun {
  cpu::Aggregation& aggregation;
  const cpu::Aggregation::Phase& phase;
};

void run_task(void* phase_run, size_t task) {
  const auto& run = *static_cast<const PhaseRun*>(phase_run);
  run.aggregation.run(run.phase, static_cast<int64_t>(task));
}

void run_phase(cpu::Aggregation* aggregation, const cpu::Aggregation::Phase& phase, const Ort::KernelContext& context) {
  PhaseRun run{*aggregation, phase};
  if (phase.tasks == 1) {
    run_task(&run, 0);
  } else if (phase.tasks > 1) {
    constexpr size_t kBatchesAsThreads = 0;
    context.ParallelFor(run_task, static_cast<size_t>(phase.tasks), kBatchesAsThreads, &run);
  }
}

}  // namespace

NodeKernel::NodeKernel(Ort::ConstKernelInfo info) : attributes_(read_attributes(info)), kernel_(dispatched_kernel()) {
  check_types(attributes_, info);
}

void NodeKernel::compute(const Ort::KernelContext& context) const {
  const Ort::ConstValue x = context.GetInput(0);
  const Ort::ConstValue coefficients = context.GetInput(1);
  const Ort::ConstValue mask =
      context.GetInputCount() > kRequiredInputs ? context.GetInput(kRequiredInputs) : Ort::ConstValue{};
  const Problem problem = describe(attributes_, x, coefficients, mask);
  Ort::UnownedValue y = context.GetOutput(0, {problem.batch, problem.output_tokens(), problem.channels});
  cpu::Aggregation aggregation(kernel_, problem,
                               {x.GetTensorRawData(), coefficients.GetTensorRawData(),
                                mask ? mask.GetTensorRawData() : nullptr, y.GetTensorMutableRawData()});
  for (const cpu::Aggregation::Phase& phase : aggregation.phases()) {
    run_phase(&aggregation, phase, context);
  }
}

OrtStatus* NodeKernel::ComputeV2(OrtKernelContext* context) const noexcept {
  return status_of(Ort::GetApi(), [&] { compute(Ort::KernelContext(context)); });
}

}  // namespace pom::onnxruntime
