#include "cpu_kernel.h"

#include <cstring>
#include <string>
#include <vector>

#include "cpu/aggregation.h"
#include "cpu/dispatch.h"
#include "cpu/element.h"
#include "inputs.h"
#include "status.h"

namespace pom::onnxruntime {
namespace {

// Writes the means of a call without tokens, for which a kernel would visit every row of the batch. Returns false for
// any other call.
bool write_mean_of_nothing(const OpCall& call, void* y) {
  const auto& [problem, gate] = call;
  if (problem.attributes.mode != Mode::kMean || problem.tokens > 0 || problem.attributes.stateful || gate) {
    return false;
  }
  std::memset(y, 0, static_cast<size_t>(problem.batch * problem.channels * cpu::element_size(problem.data_type)));
  return true;
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
  // Each thread takes the next task, whatever its index.
  const auto work = [](void* phase_run, size_t) {
    const auto& each = *static_cast<const PhaseRun*>(phase_run);
    each.aggregation.run(each.phase);
  };
  constexpr size_t kBatchesAsThreads = 0;
  context.ParallelFor(work, static_cast<size_t>(threads), kBatchesAsThreads, &run);
}

}  // namespace

const cpu::Kernel& dispatched_kernel() {
  const cpu::Dispatch dispatch = cpu::dispatch();
  throw_if(dispatch.error);
  return *dispatch.kernel;
}

CpuKernel::CpuKernel(const OpSignature& signature, const Ort::ConstKernelInfo& info)
    : node_(signature, info), kernel_(dispatched_kernel()) {
  prepare_constants(info);
}

void CpuKernel::prepare_constants(const Ort::ConstKernelInfo& info) {
  const auto constant = [&](size_t position, size_t rank) -> Ort::ConstValue {
    int is_constant = 0;
    const Ort::ConstValue value = info.GetTensorConstantInput(position, &is_constant);
    return is_constant != 0 && value.GetTensorTypeAndShapeInfo().GetDimensionsCount() == rank ? value
                                                                                              : Ort::ConstValue{};
  };
  const size_t position = node_.position(kCoefficients);
  const bool is_power = node_.attributes().form == Form::kPower;
  if (const Ort::ConstValue value = is_power ? constant(position, 2) : Ort::ConstValue{}) {
    const std::vector<int64_t> shape = value.GetTensorTypeAndShapeInfo().GetShape();
    throw_if(validate_columns(shape[1]));
    coefficients_ =
        cpu::Coefficients(value.GetTensorRawData(), type_at(node_.signature(), info, position), shape[0], shape[1]);
  }
  if (!node_.signature().gated) {
    return;
  }
  if (const Ort::ConstValue value = constant(kGateBias, 1)) {
    const auto count = static_cast<int64_t>(value.GetTensorTypeAndShapeInfo().GetElementCount());
    gate_bias_ = cpu::as_floats(value.GetTensorRawData(), type_at(node_.signature(), info, kGateBias), count);
  }
}

void CpuKernel::compute(const Ort::KernelContext& context) const {
  const Inputs inputs(node_.signature(), context);
  const OpCall call = node_.describe(inputs.infos());
  const auto& [problem, gate] = call;

  const auto data = [&](Input input) { return inputs.data(node_.position(input)); };
  if (problem.attributes.stateful) {
    throw_if(validate_lengths(problem, static_cast<const int64_t*>(data(kPastLength))));
  }
  const auto outputs = make_outputs(call, context);
  if (is_empty(call) || write_mean_of_nothing(call, outputs[kY])) {
    return;
  }
  cpu::Tensors tensors{data(kX), data(kMask), data(kCos), data(kSin), nullptr, nullptr, nullptr};
  std::unique_ptr<float[]> bias;
  if (gate) {
    if (gate_bias_ == nullptr) {
      bias = cpu::as_floats(inputs.data(kGateBias), gate->bias_type, gate->gates);
    }
    tensors.gate = inputs.data(kGate);
    tensors.gate_bias = bias ? bias.get() : gate_bias_.get();
  }
  cpu::Coefficients coefficients;
  if (node_.attributes().form == Form::kPower && coefficients_.empty()) {
    coefficients = cpu::Coefficients(data(kCoefficients), problem.coefficient_type, problem.channels, problem.degree);
  }
  tensors.y = outputs[kY];
  tensors.past_state = static_cast<const float*>(data(kPastState));
  tensors.past_length = static_cast<const int64_t*>(data(kPastLength));
  tensors.present_state = static_cast<float*>(outputs[kPresentState]);
  tensors.present_length = static_cast<int64_t*>(outputs[kPresentLength]);
  cpu::Aggregation aggregation(kernel_, problem, gate ? &*gate : nullptr, tensors,
                               coefficients_.empty() ? coefficients : coefficients_);
  for (int phase = 0; phase < aggregation.phases(); ++phase) {
    run_phase(&aggregation, phase, context);
  }
}

OrtStatus* CpuKernel::ComputeV2(OrtKernelContext* context) const noexcept {
  return status_of(Ort::GetApi(), node_.signature().name, [&] { compute(Ort::KernelContext(context)); });
}

}  // namespace pom::onnxruntime
