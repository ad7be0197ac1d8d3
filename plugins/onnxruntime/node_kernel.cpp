#include "node_kernel.h"

#include <array>
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

void check_types(const Attributes& attributes, const Ort::ConstKernelInfo& info) {
  std::vector<TensorInfo> inputs(info.GetInputCount());
  bool tables_are_known = true;
  for (size_t input = 0; input < inputs.size(); ++input) {
    if (info.GetInputName(input).empty()) {
      continue;  // not given, and of no type
    }
    const Ort::TypeInfo type_info = info.GetInputTypeInfo(input);
    const auto tensor = type_info.GetTensorTypeAndShapeInfo();
    inputs[input].type = data_type(tensor.GetElementType(), kInputs[input]);
    inputs[input].shape = fitting_shape(attributes, input);
    // A placeholder is known by its rank; what is of unknown rank, which reads as 0, is left to the run.
    const size_t rank = tensor.GetDimensionsCount();
    inputs[input].given = input < kRequiredInputs || rank > 1;
    tables_are_known = tables_are_known && (input < kCos || rank > 0);
  }
  if (!tables_are_known) {
    inputs.resize(kCos);  // each is checked against the other
  }
  Problem problem;
  throw_if(describe(attributes, inputs, &problem));
}

// A call's inputs in the order of kInputs; those that the node lacks are null.
class Inputs {
 public:
  explicit Inputs(const Ort::KernelContext& context) {
    for (size_t i = 0; i < context.GetInputCount(); ++i) {
      values_.at(i) = context.GetInput(i);
    }
  }

  [[nodiscard]] std::vector<TensorInfo> infos() const {
    std::vector<TensorInfo> infos(values_.size());
    for (size_t i = 0; i < values_.size(); ++i) {
      if (values_[i]) {
        const auto tensor = values_[i].GetTensorTypeAndShapeInfo();
        infos[i] = {true, data_type(tensor.GetElementType(), kInputs[i]), tensor.GetShape()};
      }
    }
    return infos;
  }

  [[nodiscard]] const void* data(Input input) const {
    const Ort::ConstValue& value = values_[static_cast<size_t>(input)];
    return value ? value.GetTensorRawData() : nullptr;
  }

 private:
  std::array<Ort::ConstValue, kInputs.size()> values_;
};

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
  const Inputs inputs(context);
  Problem problem;
  throw_if(describe(attributes_, inputs.infos(), &problem));
  Ort::UnownedValue y = context.GetOutput(0, {problem.batch, problem.output_tokens(), problem.channels});
  cpu::Aggregation aggregation(kernel_, problem,
                               {inputs.data(kX), inputs.data(kCoefficients), inputs.data(kMask), inputs.data(kCos),
                                inputs.data(kSin), y.GetTensorMutableRawData()});
  for (const cpu::Aggregation::Phase& phase : aggregation.phases()) {
    run_phase(&aggregation, phase, context);
  }
}

OrtStatus* NodeKernel::ComputeV2(OrtKernelContext* context) const noexcept {
  return status_of(Ort::GetApi(), [&] { compute(Ort::KernelContext(context)); });
}

}  // namespace pom::onnxruntime
