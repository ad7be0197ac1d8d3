// The mean mode: sums of chunks, the mean of each block, computed by the task that finishes its last chunk, and then
// the gate, if there is one.
#include <algorithm>

#include "aggregation.h"
#include "element.h"

namespace pom::cpu {
namespace {

constexpr int64_t kWeightRows = 256;  // weights read at a time
constexpr int64_t kGateTokens = 64;   // per task

}  // namespace

void Aggregation::prepare_mean() {
  prepare_sums();
  add_phase(layout_.tasks(), &Aggregation::accumulate);
  if (gated_) {
    means_ = uninitialized<float>(layout_.batch * problem_.channels + kPadding);
    gate_layout_.tokens = gate_.tokens;
    gate_layout_.cut_tokens(kGateTokens);
    add_phase(gate_layout_.tasks(), &Aggregation::gate);
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

void Aggregation::accumulate(int64_t task) {
  // For a block with a single chunk, whose sums no other task adds to.
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
  // The task that finishes a block's last chunk sees what the others have written.
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
