// The past and the present of a stateful call.
#include <algorithm>

#include "aggregation.h"

namespace pom::cpu {

double Aggregation::past_weight(int64_t batch) const {
  return problem_.attributes.stateful ? static_cast<double>(lengths_[static_cast<size_t>(batch)]) : 0.0;
}

// The position of a block's first column in a state, in one part; in the state's next row, it is `channels` further.
int64_t Aggregation::state_at(const Layout::Place& place, int64_t part) const {
  const int64_t stride = tensors_.state_stride == 0 ? kStateRows * problem_.channels : tensors_.state_stride;
  return place.batch * stride + place.channel + part * layout_.width;
}

void Aggregation::start(const Layout::Place& place, Carry* carry) const {
  carry->tile.store(0, std::memory_order_relaxed);
  carry->weight = 0.0;
  std::fill_n(carry->sum, layout_.scratch(), 0.0F);
  std::fill_n(carry->rest, layout_.scratch(), 0.0F);
  if (!problem_.attributes.stateful) {
    return;
  }
  for (int64_t part = 0; part < layout_.parts; ++part) {
    const float* const past = tensors_.past_state + state_at(place, part);
    std::copy_n(past, place.columns, carry->sum + part * layout_.block_columns);
    std::copy_n(past + problem_.channels, place.columns, carry->rest + part * layout_.block_columns);
  }
}

void Aggregation::read_past(const Layout::Place& place, int64_t part, double* totals) const {
  const float* const past = tensors_.past_state + state_at(place, part);
  for (int64_t i = 0; i < place.columns; ++i) {
    totals[i] = static_cast<double>(past[i]) + static_cast<double>(past[problem_.channels + i]);
  }
}

void Aggregation::write_present(const Layout::Place& place, int64_t part, const double* totals) const {
  if (tensors_.present_state == nullptr) {
    return;
  }
  float* const sum = tensors_.present_state + state_at(place, part);
  float* const rest = sum + problem_.channels;
  for (int64_t i = 0; i < place.columns; ++i) {
    sum[i] = static_cast<float>(totals[i]);
    rest[i] = static_cast<float>(totals[i] - static_cast<double>(sum[i]));
  }
}

void Aggregation::write_present(const Layout::Place& place, const Carry& carry) const {
  for (int64_t part = 0; part < layout_.parts; ++part) {
    const float* const sum = carry.sum + part * layout_.block_columns;
    const float* const rest = carry.rest + part * layout_.block_columns;
    double totals[kCausalChannels];
    for (int64_t i = 0; i < place.columns; ++i) {
      totals[i] = static_cast<double>(sum[i]) + static_cast<double>(rest[i]);
    }
    write_present(place, part, totals);
  }
  write_length(place, carry.weight);
}

// Weights are integers here. Every block of a batch entry counts the same tokens, so only the first one writes the
// length.
void Aggregation::write_length(const Layout::Place& place, double weight) const {
  if (tensors_.present_length != nullptr && place.block == 0) {
    tensors_.present_length[place.batch] = lengths_[static_cast<size_t>(place.batch)] + static_cast<int64_t>(weight);
  }
}

}  // namespace pom::cpu
