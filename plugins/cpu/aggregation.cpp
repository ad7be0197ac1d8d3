#include "aggregation.h"

#include <algorithm>

#include "half.h"

namespace pom::cpu {
namespace {

// Tokens of one task where the tokens can be cut without reading them twice: enough to keep the partial sums small
// against the input, few enough to keep every thread busy.
constexpr int64_t kChunkTokens = 128;
// A causal call reads the input twice where its tokens are cut. So only its channels are, in narrower blocks, unless
// that gives too few tasks for the tokens there are.
constexpr int64_t kCausalBlockChannels = 128;
constexpr int64_t kCausalTasks = 4;
constexpr int64_t kCausalChunkTokens = 1024;

int64_t divide_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

int64_t element_size(DataType type) {
  switch (type) {
    case DataType::kFloat32:
      return 4;
    case DataType::kFloat16:
    case DataType::kBFloat16:
      return 2;
    case DataType::kBool:
      return 1;
  }
  return 0;
}

float element(const void* data, DataType type, int64_t index) {
  switch (type) {
    case DataType::kFloat16:
      return to_float(static_cast<const Half*>(data)[index]);
    case DataType::kBool:
      return static_cast<const uint8_t*>(data)[index] != 0 ? 1.0F : 0.0F;
    default:
      return static_cast<const float*>(data)[index];
  }
}

float reciprocal(double weights, double epsilon) {
  return weights == 0.0 ? 0.0F : static_cast<float>(1.0 / (weights + epsilon));
}

std::unique_ptr<float[]> uninitialized(int64_t count) {
  return std::unique_ptr<float[]>(new float[static_cast<size_t>(count)]);
}

}  // namespace

Aggregation::Aggregation(const Kernel& kernel, const Problem& problem, const Tensors& tensors)
    : problem_(problem),
      tensors_(tensors),
      functions_(problem.data_type == DataType::kFloat16 ? kernel.float16 : kernel.float32),
      cut_(cut_for(problem)),
      padded_channels_(divide_up(problem.channels, kPadding) * kPadding) {
  plan();
  allocate();
  transpose_coefficients();
}

Aggregation::Cut Aggregation::cut_for(const Problem& problem) {
  const bool causal = problem.attributes.mode == Mode::kCausal;
  const int64_t block_channels = causal ? kCausalBlockChannels : kMaxBlockChannels;
  const int64_t blocks = divide_up(problem.channels, block_channels);
  int64_t chunk_tokens = kChunkTokens;
  if (causal) {
    const bool enough = problem.batch * blocks >= kCausalTasks;
    chunk_tokens = enough ? std::max<int64_t>(problem.tokens, 1) : kCausalChunkTokens;
  }
  return {chunk_tokens, divide_up(problem.tokens, chunk_tokens), block_channels, blocks};
}

void Aggregation::plan() {
  const int64_t mask_rows = problem_.has_mask ? problem_.mask_batch : 1;
  const int64_t blocks = problem_.batch * cut_.blocks;
  switch (problem_.attributes.mode) {
    case Mode::kFeatures:
      phases_ = {{blocks * cut_.chunks, &Aggregation::features}};
      break;
    case Mode::kMean:
      phases_ = {{mask_rows, &Aggregation::weigh},
                 {blocks * cut_.chunks, &Aggregation::accumulate_all},
                 {blocks, &Aggregation::average}};
      break;
    case Mode::kCausal:
      phases_ = {{mask_rows, &Aggregation::weigh},
                 {blocks * std::max<int64_t>(cut_.chunks - 1, 0), &Aggregation::accumulate_all_but_last},
                 {blocks, &Aggregation::scan},
                 {blocks * cut_.chunks, &Aggregation::causal}};
      break;
  }
}

void Aggregation::allocate() {
  const int64_t mask_rows = problem_.has_mask ? problem_.mask_batch : 1;
  coefficients_ = uninitialized(problem_.degree * padded_channels_);
  if (problem_.attributes.mode == Mode::kFeatures) {
    return;
  }
  sums_ = uninitialized(problem_.batch * cut_.chunks * 2 * padded_channels_);
  scales_ = uninitialized(mask_rows * (problem_.attributes.mode == Mode::kCausal ? problem_.tokens : 1));
  if (problem_.has_mask) {
    weights_ = uninitialized(mask_rows * problem_.tokens);
  }
}

void Aggregation::transpose_coefficients() {
  for (int64_t k = 0; k < problem_.degree; ++k) {
    float* row = coefficients_.get() + k * padded_channels_;
    for (int64_t channel = 0; channel < problem_.channels; ++channel) {
      row[channel] = element(tensors_.coefficients, problem_.coefficient_type, channel * problem_.degree + k);
    }
    std::fill(row + problem_.channels, row + padded_channels_, 0.0F);
  }
}

Aggregation::Place Aggregation::place(int64_t task, int64_t chunks) const {
  const int64_t channel = task % cut_.blocks * cut_.block_channels;
  const int64_t chunk = task / cut_.blocks % chunks;
  const int64_t batch = task / cut_.blocks / chunks;
  return {batch, chunk, channel, std::min(cut_.block_channels, problem_.channels - channel)};
}

int64_t Aggregation::mask_row(int64_t batch) const { return problem_.has_mask && problem_.mask_batch > 1 ? batch : 0; }

float* Aggregation::sum_at(int64_t batch, int64_t chunk) const {
  return sums_.get() + (batch * cut_.chunks + chunk) * 2 * padded_channels_;
}

float* Aggregation::rest_at(int64_t batch, int64_t chunk) const { return sum_at(batch, chunk) + padded_channels_; }

Rows Aggregation::rows_at(const Place& place) const {
  const int64_t token = place.chunk * cut_.chunk_tokens;
  const int64_t start = (place.batch * problem_.tokens + token) * problem_.channels + place.channel;
  const int64_t start_byte = start * element_size(problem_.data_type);
  const int64_t weight = mask_row(place.batch) * problem_.tokens + token;

  Rows rows{};
  rows.x = static_cast<const char*>(tensors_.x) + start_byte;
  rows.stride = problem_.channels;
  rows.count = std::min(cut_.chunk_tokens, problem_.tokens - token);
  rows.channels = place.channels;
  rows.coefficients = coefficients_.get() + place.channel;
  rows.coefficient_stride = padded_channels_;
  rows.degree = problem_.degree;
  if (problem_.attributes.mode != Mode::kMean) {
    rows.y = static_cast<char*>(tensors_.y) + start_byte;
  }
  if (problem_.attributes.mode == Mode::kFeatures) {
    return rows;
  }
  rows.weights = problem_.has_mask ? weights_.get() + weight : nullptr;
  rows.scales = problem_.attributes.mode == Mode::kCausal ? scales_.get() + weight : nullptr;
  rows.sum = sum_at(place.batch, place.chunk) + place.channel;
  rows.rest = rest_at(place.batch, place.chunk) + place.channel;
  return rows;
}

void Aggregation::weigh(int64_t mask_row) {
  const bool causal = problem_.attributes.mode == Mode::kCausal;
  const double epsilon = problem_.has_mask ? static_cast<double>(problem_.attributes.epsilon) : 0.0;
  double total = 0.0;
  for (int64_t token = 0; token < problem_.tokens; ++token) {
    const int64_t index = mask_row * problem_.tokens + token;
    if (problem_.has_mask) {
      weights_[index] = element(tensors_.mask, problem_.mask_type, index);
    }
    total += problem_.has_mask ? static_cast<double>(weights_[index]) : 1.0;
    if (causal) {
      scales_[index] = reciprocal(total, epsilon);
    }
  }
  if (!causal) {
    scales_[mask_row] = reciprocal(total, epsilon);
  }
}

void Aggregation::features(int64_t task) { functions_.features(rows_at(place(task, cut_.chunks))); }

void Aggregation::accumulate(const Place& place) {
  const Rows rows = rows_at(place);
  const int64_t padded = divide_up(place.channels, kPadding) * kPadding;
  std::fill(rows.sum, rows.sum + padded, 0.0F);
  std::fill(rows.rest, rows.rest + padded, 0.0F);
  functions_.accumulate(rows);
}

void Aggregation::accumulate_all(int64_t task) { accumulate(place(task, cut_.chunks)); }

void Aggregation::accumulate_all_but_last(int64_t task) { accumulate(place(task, cut_.chunks - 1)); }

void Aggregation::average(int64_t task) {
  const Place block = place(task, 1);
  double totals[kMaxBlockChannels] = {};
  for (int64_t chunk = 0; chunk < cut_.chunks; ++chunk) {
    const float* sum = sum_at(block.batch, chunk) + block.channel;
    const float* rest = rest_at(block.batch, chunk) + block.channel;
    for (int64_t channel = 0; channel < block.channels; ++channel) {
      totals[channel] += static_cast<double>(sum[channel]) + static_cast<double>(rest[channel]);
    }
  }
  const float scale = scales_[mask_row(block.batch)];
  const int64_t start = block.batch * problem_.channels + block.channel;
  for (int64_t channel = 0; channel < block.channels; ++channel) {
    const double mean = scale == 0.0F ? 0.0 : totals[channel] * static_cast<double>(scale);
    if (problem_.data_type == DataType::kFloat16) {
      static_cast<Half*>(tensors_.y)[start + channel] = to_half(static_cast<float>(mean));
    } else {
      static_cast<float*>(tensors_.y)[start + channel] = static_cast<float>(mean);
    }
  }
}

void Aggregation::scan(int64_t task) {
  const Place block = place(task, 1);
  const int64_t padded = divide_up(block.channels, kPadding) * kPadding;
  double totals[kMaxBlockChannels] = {};
  for (int64_t chunk = 0; chunk < cut_.chunks; ++chunk) {
    float* sum = sum_at(block.batch, chunk) + block.channel;
    float* rest = rest_at(block.batch, chunk) + block.channel;
    const bool last = chunk == cut_.chunks - 1;
    for (int64_t channel = 0; channel < padded; ++channel) {
      const double before = totals[channel];
      if (!last) {  // the last chunk's own sum was never made
        totals[channel] += static_cast<double>(sum[channel]) + static_cast<double>(rest[channel]);
      }
      sum[channel] = static_cast<float>(before);
      rest[channel] = static_cast<float>(before - static_cast<double>(sum[channel]));
    }
  }
}

void Aggregation::causal(int64_t task) { functions_.causal(rows_at(place(task, cut_.chunks))); }

}  // namespace pom::cpu
