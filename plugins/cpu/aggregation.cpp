#include "aggregation.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "element.h"
#include "pom/contract.h"

namespace pom::cpu {
namespace {

constexpr int64_t kMaxThreads = 256;
// An output of this size is written past the caches. They would not hold it until it is read, and reading memory that
// is about to be overwritten would be a third of the traffic.
constexpr int64_t kStreamedBytes = int64_t{32} << 20;
constexpr uintptr_t kStreamedAlignment = 64;
constexpr int64_t kSerialWork = 32768;  // multiply-adds, roughly: for less, starting a thread costs more than it saves

const TypeFunctions& functions_for(const Kernel& kernel, DataType type) {
  switch (type) {
    case DataType::kFloat16:
      return kernel.float16;
    case DataType::kBFloat16:
      return kernel.bfloat16;
    default:
      return kernel.float32;
  }
}

const RowsFunctions& rows_functions_for(const Kernel& kernel, const Problem& problem) {
  const FeaturesFunctions& functions = functions_for(kernel, problem.data_type).features;
  if (problem.attributes.form == Form::kProduct) {
    return functions.product;
  }
  if (!problem.has_rotation) {
    return functions.power;
  }
  return problem.rotation_type == DataType::kFloat32 ? functions.rotated_by_float : functions.rotated;
}

OutputFunction output_function_for(const Kernel& kernel, const Problem& problem, const Gate* gate) {
  if (gate == nullptr) {
    return nullptr;
  }
  const OutputFunctions& functions = functions_for(kernel, problem.data_type).output;
  const auto activation = static_cast<size_t>(gate->activation);
  return gate->gates == problem.channels ? functions.by_channel[activation] : functions.by_head[activation];
}

// Rows and parts of y then begin at whole vectors, since blocks of columns are multiples of the padding.
bool is_streamed(const Problem& problem, int64_t tokens, int64_t width, const void* y) {
  const int64_t size = element_size(problem.data_type);
  return problem.batch * tokens * problem.channels * size >= kStreamedBytes &&
         reinterpret_cast<uintptr_t>(y) % kStreamedAlignment == 0 &&
         static_cast<uintptr_t>(width * size) % kStreamedAlignment == 0;
}

}  // namespace

Aggregation::Aggregation(const Kernel& kernel, const Problem& problem, const Gate* gate, const Tensors& tensors,
                         const Coefficients& coefficients)
    : problem_(problem),
      gated_(gate != nullptr),
      gate_(gated_ ? *gate : Gate{}),
      tensors_(tensors),
      coefficients_(coefficients),
      rows_functions_(rows_functions_for(kernel, problem)),
      output_function_(output_function_for(kernel, problem, gate)),
      layout_(problem),
      gate_layout_(layout_),
      streamed_(is_streamed(problem, gated_ ? gate_.tokens : problem.tokens, layout_.width, tensors.y)),
      weight_scale_(problem.has_mask && problem.mask_type != DataType::kBool ? kWeightScale : 1.0F),
      epsilon_(problem.has_mask ? static_cast<double>(problem.attributes.epsilon) * weight_scale_ : 0.0) {
  if (streamed_ && problem.attributes.mode == Mode::kCausal) {
    layout_.cut_columns(kStreamedCausalChannels / layout_.parts);
  }
  if (problem.attributes.stateful) {
    lengths_ = uninitialized<int64_t>(problem.batch);
    std::copy_n(tensors.past_length, problem.batch, lengths_.get());
  }
  switch (problem.attributes.mode) {
    case Mode::kFeatures:
      prepare_features();
      break;
    case Mode::kCausal:
      prepare_causal();
      break;
    case Mode::kMean:
      prepare_mean();
      break;
  }
}

void Aggregation::add_phase(int64_t tasks, void (Aggregation::*task)(int64_t)) {
  Phase& phase = phases_[static_cast<size_t>(phase_count_++)];
  phase.tasks = tasks;
  phase.task = task;
}

int64_t Aggregation::threads(int phase) const {
  const int64_t rows = problem_.batch * std::max(problem_.tokens, gate_.tokens);
  if (rows * problem_.channels * (problem_.degree + 1) < kSerialWork) {
    return 1;
  }
  return std::min(phases_[static_cast<size_t>(phase)].tasks, kMaxThreads);
}

bool Aggregation::in_any_order(int phase) const {
  return phases_[static_cast<size_t>(phase)].task != &Aggregation::causal || layout_.chunks == 1;
}

void Aggregation::run(int phase, int64_t task) noexcept { (this->*phases_[static_cast<size_t>(phase)].task)(task); }

bool Aggregation::run_next(int phase) noexcept {
  Phase& running = phases_[static_cast<size_t>(phase)];
  const int64_t task = running.next.fetch_add(1, std::memory_order_relaxed);
  if (task >= running.tasks) {
    return false;
  }
  run(phase, task);
  return true;
}

void Aggregation::run(int phase) noexcept {
  while (run_next(phase)) {
  }
}

Rows Aggregation::rows_at(const Layout::Place& place, int64_t token, int64_t count) const {
  Rows rows{};
  const int64_t start = (place.batch * problem_.tokens + token) * problem_.channels + place.channel;
  rows.x = element_at(tensors_.x, problem_.data_type, start);
  rows.stride = problem_.channels;
  rows.part_stride = layout_.width;
  rows.scratch_stride = layout_.block_columns;
  rows.count = count;
  rows.columns = place.columns;
  rows.parts = layout_.parts;
  if (problem_.attributes.form == Form::kPower) {
    rows.coefficients = coefficients_.values() + place.channel;
    rows.coefficient_stride = coefficients_.stride();
    rows.degree = problem_.degree;
  }
  if (problem_.has_rotation) {
    rows.table_stride = problem_.channels / 2;
    const int64_t batch = problem_.rotation_batch > 1 ? place.batch : 0;
    const int64_t first = (batch * problem_.tokens + token) * rows.table_stride + place.column;
    rows.cos = element_at(tensors_.cos, problem_.rotation_type, first);
    rows.sin = element_at(tensors_.sin, problem_.rotation_type, first);
  }
  return rows;
}

Output Aggregation::output_at(const Layout::Place& place, int64_t token, int64_t count) const {
  Output output{};
  // The output has as many tokens as the gate, if there is one.
  const int64_t tokens = gated_ ? gate_.tokens : problem_.tokens;
  const int64_t row = place.batch * tokens + token;
  output.y = element_at(tensors_.y, problem_.data_type, row * problem_.channels + place.channel);
  output.stride = problem_.channels;
  output.part_stride = layout_.width;
  output.scratch_stride = layout_.block_columns;
  output.means_stride = layout_.scratch();
  output.count = count;
  output.columns = place.columns;
  output.parts = layout_.parts;
  output.streamed = streamed_;
  if (gated_) {
    output.gate = element_at(tensors_.gate, problem_.data_type, row * gate_.gates);
    output.gate_bias = tensors_.gate_bias;
    output.gate_stride = gate_.gates;
    output.channel = place.channel;
    output.head_width = problem_.channels / gate_.gates;
  }
  return output;
}

double Aggregation::read_weights(int64_t batch, int64_t token, int64_t count, float* weights) const {
  const int64_t first = (problem_.mask_batch > 1 ? batch : 0) * problem_.tokens + token;
  double total = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    weights[i] = element(tensors_.mask, problem_.mask_type, first + i) * weight_scale_;
    total += static_cast<double>(weights[i]);
  }
  return total;
}

float Aggregation::scale(double weight) const {
  if (weight == 0.0) {
    return 0.0F;
  }
  const double divisor = weight + epsilon_;
  const bool fits = std::abs(divisor) <= static_cast<double>(kDivisorLimit);
  return fits ? static_cast<float>(1.0 / divisor) : std::numeric_limits<float>::quiet_NaN();
}

}  // namespace pom::cpu
