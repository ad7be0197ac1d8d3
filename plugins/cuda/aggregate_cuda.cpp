#include "aggregate_cuda.h"

#include <cstdint>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace pom::cuda {
namespace {

constexpr std::size_t kVectorBytes = 16;

bool aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % kVectorBytes == 0; }

// The channels per access: 16 bytes of x if runs of channels and pointers allow it, else a single one.
int32_t choose_width(const Problem& problem, const std::optional<Gate>& gate, const Buffers& buffers) {
  const int32_t width = problem.data_type == DataType::kFloat32 ? 4 : 8;
  // A pack has as many gates as channels, or a single one.
  const bool gates_fit = !gate || gate->gates == problem.channels || problem.channels / gate->gates % width == 0;
  const bool fits = run_channels(problem) % width == 0 && gates_fit && aligned(buffers.x) && aligned(buffers.gate) &&
                    aligned(buffers.cos) && aligned(buffers.sin) && aligned(buffers.output);
  return fits ? width : 1;
}

// The kernels for a problem's type and a plan's width.
const Kernels& kernels_for(DataType type, int32_t width) {
  if (width == 1) {
    return kSingleKernels;
  }
  if (type == DataType::kFloat32) {
    return kFloat32Kernels;
  }
  return type == DataType::kFloat16 ? kFloat16Kernels : kBFloat16Kernels;
}

// The size of the means that wait for the gate, which precede the sums in the workspace.
std::size_t mean_bytes(const Problem& problem, const std::optional<Gate>& gate) {
  if (!gate || problem.attributes.mode != Mode::kMean) {
    return 0;
  }
  const auto bytes = static_cast<std::size_t>(problem.batch * problem.channels) * sizeof(float);
  return (bytes + kVectorBytes - 1) / kVectorBytes * kVectorBytes;
}

}  // namespace

Buffers bind(const Problem& problem, bool has_gate, const void* const* inputs, void* const* outputs) {
  const void* const* const others = inputs + (has_gate ? kGateInputs : 0);
  Buffers buffers;
  buffers.x = inputs[kX];
  buffers.gate = has_gate ? inputs[kGate] : nullptr;
  buffers.gate_bias = has_gate ? inputs[kGateBias] : nullptr;
  buffers.coefficients = problem.attributes.form == Form::kPower ? others[kCoefficients] : nullptr;
  buffers.mask = problem.has_mask ? others[kMask] : nullptr;
  buffers.cos = problem.has_rotation ? others[kCos] : nullptr;
  buffers.sin = problem.has_rotation ? others[kSin] : nullptr;
  buffers.output = outputs[kY];
  if (problem.attributes.stateful) {
    buffers.past_state = static_cast<const float*>(others[kPastState]);
    buffers.past_length = static_cast<const int64_t*>(others[kPastLength]);
    buffers.present_state = static_cast<float*>(outputs[kPresentState]);
    buffers.present_length = static_cast<int64_t*>(outputs[kPresentLength]);
  }
  return buffers;
}

std::size_t workspace_bytes(const Problem& problem, const std::optional<Gate>& gate) {
  if (is_empty(problem, gate)) {
    return 0;
  }
  if (const std::string error = check_sizes(problem, output_tokens(problem, gate)); !error.empty()) {
    throw std::invalid_argument(error);
  }
  return mean_bytes(problem, gate) + sum_bytes(problem);
}

cudaError_t aggregate(const Problem& problem, const std::optional<Gate>& gate, const Buffers& buffers,
                      cudaStream_t stream) {
  if (is_empty(problem, gate)) {
    return cudaSuccess;
  }
  if (!check_sizes(problem, output_tokens(problem, gate)).empty()) {
    return cudaErrorInvalidValue;
  }
  const Plan plan = make_plan(problem, gate.has_value(), choose_width(problem, gate, buffers));
  Call call{problem, gate.value_or(Gate{}), buffers, plan};
  const Kernels& kernels = kernels_for(problem.data_type, plan.width);
  if (problem.attributes.mode == Mode::kFeatures) {
    return kernels.write_features(call, stream);
  }
  if (problem.attributes.mode == Mode::kCausal) {
    return kernels.write_causal(call, stream);
  }
  if (const std::size_t bytes = mean_bytes(problem, gate); bytes > 0) {
    call.means = static_cast<float*>(buffers.workspace);
    call.buffers.workspace = static_cast<char*>(buffers.workspace) + bytes;
  }
  cudaError_t status = kernels.sum_chunks(call, stream);
  if (status == cudaSuccess && plan.chunks != 1) {
    status = write_means(call, stream);
  }
  return status == cudaSuccess && gate ? kernels.gate_means(call, stream) : status;
}

}  // namespace pom::cuda
