#include "aggregation.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "element.h"
#include "pom/contract.h"

namespace pom::cpu {
namespace {

constexpr int64_t kWeightRows = 256;  // weights that are read at a time
constexpr int64_t kGateTokens = 64;   // of one task
constexpr int64_t kMaxThreads = 256;
// An output of this size is written past the caches: they would not hold it until it is read, and reading what is about
// to be overwritten is a third of the traffic.
constexpr int64_t kStreamedBytes = int64_t{32} << 20;
constexpr uintptr_t kStreamedAlignment = 64;
constexpr int64_t kSerialWork = 32768;  // multiply-adds, about: below, a thread costs more than it does

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

template <typename T>
std::unique_ptr<T[]> uninitialized(int64_t count) {
  return std::unique_ptr<T[]>(new T[static_cast<size_t>(count)]);
}

// Rows and parts of y then begin at whole vectors, since blocks of columns are whole paddings.
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
      add_phase(layout_.tasks(), &Aggregation::features);
      break;
    case Mode::kCausal:
      prepare_carries();
      add_phase(layout_.tasks(), &Aggregation::causal);
      break;
    case Mode::kMean:
      prepare_sums();
      add_phase(layout_.tasks(), &Aggregation::accumulate);
      if (gated_) {
        means_ = uninitialized<float>(layout_.batch * problem.channels + kPadding);
        gate_layout_.tokens = gate_.tokens;
        gate_layout_.cut_tokens(kGateTokens);
        add_phase(gate_layout_.tasks(), &Aggregation::gate);
      }
      break;
  }
}

void Aggregation::prepare_carries() {
  if (layout_.chunks == 1) {
    return;
  }
  const int64_t blocks = layout_.batch * layout_.blocks;
  carries_.reset(new Carry[static_cast<size_t>(blocks)]);
  carry_sums_ = uninitialized<float>(blocks * 2 * layout_.scratch());
  for (int64_t block = 0; block < blocks; ++block) {
    Carry& carry = carries_[static_cast<size_t>(block)];
    carry.sum = carry_sums_.get() + block * 2 * layout_.scratch();
    carry.rest = carry.sum + layout_.scratch();
    const int64_t first_task = block / layout_.blocks * layout_.chunks * layout_.blocks + block % layout_.blocks;
    start(layout_.place(first_task), &carry);
  }
}

void Aggregation::prepare_sums() {
  if (layout_.chunks == 1) {
    return;
  }
  const int64_t blocks = layout_.batch * layout_.blocks;
  sums_ = uninitialized<float>(layout_.tasks() * 2 * layout_.scratch());
  weights_ = uninitialized<double>(layout_.tasks());
  pending_ = uninitialized<std::atomic<int64_t>>(blocks);
  for (int64_t block = 0; block < blocks; ++block) {
    pending_[static_cast<size_t>(block)].store(layout_.chunks, std::memory_order_relaxed);
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

void Aggregation::run(int phase) noexcept {
  Phase& running = phases_[static_cast<size_t>(phase)];
  for (;;) {
    const int64_t task = running.next.fetch_add(1, std::memory_order_relaxed);
    if (task >= running.tasks) {
      return;
    }
    (this->*running.task)(task);
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

void Aggregation::features(int64_t task) {
  const Layout::Place place = layout_.place(task);
  Rows rows = rows_at(place, place.token, place.tokens);
  rows.y = element_at(tensors_.y, problem_.data_type,
                      (place.batch * problem_.tokens + place.token) * problem_.channels + place.channel);
  rows_functions_.features(rows);
}

void Aggregation::accumulate(int64_t task) {
  // Of a block's only chunk, whose sums nobody else adds.
  static thread_local float alone[2 * kMaxScratch];
  const Layout::Place place = layout_.place(task);
  const bool is_alone = layout_.chunks == 1;
  float* const sum = is_alone ? alone : sums_.get() + task * 2 * layout_.scratch();
  const double weight = add_up(place, sum);
  if (is_alone) {
    average(place, sum, 0, weight);
    return;
  }
  weights_[static_cast<size_t>(task)] = weight;
  // Whoever finishes a block's last chunk sees what the others have written.
  auto& pending = pending_[static_cast<size_t>(place.batch * layout_.blocks + place.block)];
  if (pending.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    const int64_t first = place.batch * layout_.chunks * layout_.blocks + place.block;
    double total = 0.0;
    for (int64_t chunk = 0; chunk < layout_.chunks; ++chunk) {
      total += weights_[static_cast<size_t>(first + chunk * layout_.blocks)];
    }
    const int64_t each = 2 * layout_.scratch();
    average(place, sums_.get() + first * each, layout_.blocks * each, total);
  }
}

double Aggregation::add_up(const Layout::Place& place, float* sum) const {
  std::fill_n(sum, 2 * layout_.scratch(), 0.0F);
  const auto add = [&](int64_t token, int64_t count, const float* weights) {
    Rows rows = rows_at(place, token, count);
    rows.weights = weights;
    rows.sum = sum;
    rows.rest = sum + layout_.scratch();
    rows_functions_.accumulate(rows);
  };
  if (!problem_.has_mask) {
    add(place.token, place.tokens, nullptr);
    return static_cast<double>(place.tokens);
  }
  double weight = 0.0;
  float weights[kWeightRows];
  for (int64_t done = 0; done < place.tokens; done += kWeightRows) {
    const int64_t count = std::min(kWeightRows, place.tokens - done);
    weight += read_weights(place.batch, place.token + done, count, weights);
    add(place.token + done, count, weights);
  }
  return weight;
}

void Aggregation::average(const Layout::Place& place, const float* sums, int64_t stride, double weight) {
  const float factor = scale(past_weight(place.batch) + weight);
  write_length(place, weight);
  for (int64_t part = 0; part < layout_.parts; ++part) {
    double totals[kMaxBlockColumns];
    std::fill_n(totals, place.columns, 0.0);
    if (problem_.attributes.stateful) {
      read_past(place, part, totals);
    }
    for (int64_t chunk = 0; chunk < layout_.chunks; ++chunk) {
      const float* sum = sums + chunk * stride + part * layout_.block_columns;
      const float* rest = sum + layout_.scratch();
      for (int64_t i = 0; i < place.columns; ++i) {
        totals[i] += static_cast<double>(sum[i]) + static_cast<double>(rest[i]);
      }
    }
    write_present(place, part, totals);
    const int64_t start = place.batch * problem_.channels + place.channel + part * layout_.width;
    for (int64_t i = 0; i < place.columns; ++i) {
      const float mean = factor == 0.0F ? 0.0F : static_cast<float>(totals[i] * static_cast<double>(factor));
      if (means_ != nullptr) {
        means_[static_cast<size_t>(start + i)] = mean;
      } else {
        set_element(tensors_.y, problem_.data_type, start + i, mean);
      }
    }
  }
}

void Aggregation::gate(int64_t task) {
  const Layout::Place place = gate_layout_.place(task);
  Output output = output_at(place, place.token, place.tokens);
  output.means = means_.get() + place.batch * problem_.channels + place.channel;
  output.means_stride = 0;
  output.scratch_stride = layout_.width;
  output_function_(output);
}

}  // namespace pom::cpu
