#include "aggregation.h"

#include <algorithm>

#include "half.h"

namespace pom::cpu {
namespace {

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

const RowsFunctions& functions_for(const Kernel& kernel, const Problem& problem) {
  const FeaturesFunctions& functions = problem.data_type == DataType::kFloat16 ? kernel.float16 : kernel.float32;
  if (problem.attributes.form == Form::kProduct) {
    return functions.product;
  }
  if (!problem.has_rotation) {
    return functions.power;
  }
  return problem.rotation_type == DataType::kFloat32 ? functions.rotated_by_float : functions.rotated;
}

const void* element_at(const void* data, DataType type, int64_t index) {
  return static_cast<const char*>(data) + index * element_size(type);
}

std::unique_ptr<float[]> uninitialized(int64_t count) {
  return std::unique_ptr<float[]>(new float[static_cast<size_t>(count)]);
}

}  // namespace

Aggregation::Aggregation(const Kernel& kernel, const Problem& problem, const Tensors& tensors)
    : problem_(problem), tensors_(tensors), functions_(functions_for(kernel, problem)), layout_(problem) {
  plan();
  allocate();
  if (problem.attributes.form == Form::kPower) {
    transpose_coefficients();
  }
}

void Aggregation::plan() {
  const int64_t mask_rows = problem_.has_mask ? problem_.mask_batch : 1;
  const int64_t blocks = problem_.batch * layout_.blocks;
  switch (problem_.attributes.mode) {
    case Mode::kFeatures:
      phases_ = {{blocks * layout_.chunks, &Aggregation::features}};
      break;
    case Mode::kMean:
      phases_ = {{mask_rows, &Aggregation::weigh},
                 {blocks * layout_.chunks, &Aggregation::accumulate_all},
                 {blocks, &Aggregation::average}};
      break;
    case Mode::kCausal:
      phases_ = {{mask_rows, &Aggregation::weigh},
                 {blocks * std::max<int64_t>(layout_.chunks - 1, 0), &Aggregation::accumulate_all_but_last},
                 {blocks, &Aggregation::scan},
                 {blocks * layout_.chunks, &Aggregation::causal}};
      break;
  }
}

void Aggregation::allocate() {
  const int64_t mask_rows = problem_.has_mask ? problem_.mask_batch : 1;
  if (problem_.attributes.form == Form::kPower) {
    coefficients_ = uninitialized(problem_.degree * layout_.scratch_channels);
  }
  if (problem_.attributes.mode == Mode::kFeatures) {
    return;
  }
  sums_ = uninitialized(problem_.batch * layout_.chunks * 2 * layout_.scratch_channels);
  scales_ = uninitialized(mask_rows * (problem_.attributes.mode == Mode::kCausal ? problem_.tokens : 1));
  if (problem_.has_mask) {
    weights_ = uninitialized(mask_rows * problem_.tokens);
  }
}

void Aggregation::transpose_coefficients() {
  std::fill_n(coefficients_.get(), problem_.degree * layout_.scratch_channels, 0.0F);
  for (int64_t k = 0; k < problem_.degree; ++k) {
    for (int64_t stretch = 0; stretch < layout_.runs * layout_.parts; ++stretch) {
      float* row = coefficients_.get() + k * layout_.scratch_channels + stretch * layout_.scratch_width;
      for (int64_t i = 0; i < layout_.width; ++i) {
        const int64_t channel = stretch * layout_.width + i;
        row[i] = element(tensors_.coefficients, problem_.coefficient_type, channel * problem_.degree + k);
      }
    }
  }
}

int64_t Aggregation::mask_row(int64_t batch) const { return problem_.has_mask && problem_.mask_batch > 1 ? batch : 0; }

float* Aggregation::sum_at(const Layout::Place& place, int64_t part) const {
  const int64_t row = (place.batch * layout_.chunks + place.chunk) * 2;
  return sums_.get() + row * layout_.scratch_channels + place.scratch + part * layout_.scratch_width;
}

float* Aggregation::rest_at(const Layout::Place& place, int64_t part) const {
  return sum_at(place, part) + layout_.scratch_channels;
}

Rows Aggregation::rows_at(const Layout::Place& place) const {
  const int64_t token = place.chunk * layout_.chunk_tokens;
  const int64_t start = (place.batch * problem_.tokens + token) * problem_.channels + place.channel;

  Rows rows{};
  rows.x = element_at(tensors_.x, problem_.data_type, start);
  rows.stride = problem_.channels;
  rows.part_stride = layout_.width;
  rows.scratch_stride = layout_.scratch_width;
  rows.count = std::min(layout_.chunk_tokens, problem_.tokens - token);
  rows.columns = place.columns;
  rows.parts = layout_.parts;
  if (problem_.attributes.form == Form::kPower) {
    rows.coefficients = coefficients_.get() + place.scratch;
    rows.coefficient_stride = layout_.scratch_channels;
    rows.degree = problem_.degree;
  }
  if (problem_.has_rotation) {
    rows.table_stride = problem_.channels / 2;
    const int64_t batch = problem_.rotation_batch > 1 ? place.batch : 0;
    const int64_t first = (batch * problem_.tokens + token) * rows.table_stride + place.column;
    rows.cos = element_at(tensors_.cos, problem_.rotation_type, first);
    rows.sin = element_at(tensors_.sin, problem_.rotation_type, first);
  }
  if (problem_.attributes.mode != Mode::kMean) {
    rows.y = static_cast<char*>(tensors_.y) + start * element_size(problem_.data_type);
  }
  if (problem_.attributes.mode != Mode::kFeatures) {
    const int64_t weight = mask_row(place.batch) * problem_.tokens + token;
    rows.weights = problem_.has_mask ? weights_.get() + weight : nullptr;
    rows.scales = problem_.attributes.mode == Mode::kCausal ? scales_.get() + weight : nullptr;
    rows.sum = sum_at(place, 0);
    rows.rest = rest_at(place, 0);
  }
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

void Aggregation::features(int64_t task) { functions_.features(rows_at(layout_.place(task, layout_.chunks))); }

void Aggregation::accumulate(const Layout::Place& place) {
  for (int64_t part = 0; part < layout_.parts; ++part) {
    std::fill_n(sum_at(place, part), Layout::padded(place.columns), 0.0F);
    std::fill_n(rest_at(place, part), Layout::padded(place.columns), 0.0F);
  }
  functions_.accumulate(rows_at(place));
}

void Aggregation::accumulate_all(int64_t task) { accumulate(layout_.place(task, layout_.chunks)); }

void Aggregation::accumulate_all_but_last(int64_t task) { accumulate(layout_.place(task, layout_.chunks - 1)); }

void Aggregation::average(int64_t task) {
  Layout::Place place = layout_.place(task, 1);
  for (int64_t part = 0; part < layout_.parts; ++part) {
    double totals[kMaxBlockColumns] = {};
    for (place.chunk = 0; place.chunk < layout_.chunks; ++place.chunk) {
      const float* sum = sum_at(place, part);
      const float* rest = rest_at(place, part);
      for (int64_t i = 0; i < place.columns; ++i) {
        totals[i] += static_cast<double>(sum[i]) + static_cast<double>(rest[i]);
      }
    }
    const float scale = scales_[mask_row(place.batch)];
    const int64_t start = place.batch * problem_.channels + place.channel + part * layout_.width;
    for (int64_t i = 0; i < place.columns; ++i) {
      const double mean = scale == 0.0F ? 0.0 : totals[i] * static_cast<double>(scale);
      if (problem_.data_type == DataType::kFloat16) {
        static_cast<Half*>(tensors_.y)[start + i] = to_half(static_cast<float>(mean));
      } else {
        static_cast<float*>(tensors_.y)[start + i] = static_cast<float>(mean);
      }
    }
  }
}

void Aggregation::scan(int64_t task) {
  Layout::Place place = layout_.place(task, 1);
  for (int64_t part = 0; part < layout_.parts; ++part) {
    double totals[kMaxBlockColumns] = {};
    for (place.chunk = 0; place.chunk < layout_.chunks; ++place.chunk) {
      float* sum = sum_at(place, part);
      float* rest = rest_at(place, part);
      const bool last = place.chunk == layout_.chunks - 1;
      for (int64_t i = 0; i < Layout::padded(place.columns); ++i) {
        const double before = totals[i];
        if (!last) {  // the last chunk's own sum was never made
          totals[i] += static_cast<double>(sum[i]) + static_cast<double>(rest[i]);
        }
        sum[i] = static_cast<float>(before);
        rest[i] = static_cast<float>(before - static_cast<double>(sum[i]));
      }
    }
  }
}

void Aggregation::causal(int64_t task) { functions_.causal(rows_at(layout_.place(task, layout_.chunks))); }

}  // namespace pom::cpu
