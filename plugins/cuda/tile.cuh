// One block's tile: which tokens and channels its threads have, and the weighted polynomial features of them.
#pragma once

#include "call.h"
#include "scalar.cuh"

namespace pom::cuda {

// kRows consecutive tokens of one thread. A token of weight 0, or past the chunk's end, holds zeros.
template <int32_t Width>
struct Rows {
  float features[kRows][Width];
  float weights[kRows];
};

template <typename T, int32_t Width>
class Tile {
 public:
  // All threads of the block construct it together: it stages the tile's coefficients in `shared`.
  __device__ Tile(const Call& call, float* shared)
      : call_(call),
        coefficients_(shared),
        totals_(shared + call.problem.degree * tile_channels()),
        lane_(static_cast<int32_t>(threadIdx.x) % call.plan.lanes),
        group_(static_cast<int32_t>(threadIdx.x) / call.plan.lanes) {
    const int64_t block = blockIdx.x;
    const int64_t row = block / call.plan.channel_tiles;
    first_channel_ = block % call.plan.channel_tiles * tile_channels();
    chunk_ = row % call.plan.chunks;
    batch_ = row / call.plan.chunks;
    stage_coefficients();
  }

  [[nodiscard]] __device__ int32_t group() const { return group_; }
  [[nodiscard]] __device__ int32_t tile_channels() const { return call_.plan.lanes * Width; }
  [[nodiscard]] __device__ int64_t begin() const { return chunk_ * call_.plan.chunk_tokens; }
  [[nodiscard]] __device__ int64_t end() const {
    const int64_t end = begin() + call_.plan.chunk_tokens;
    return end < call_.problem.tokens ? end : call_.problem.tokens;
  }
  [[nodiscard]] __device__ int64_t step() const { return int64_t{call_.plan.groups} * kRows; }
  // Channels from first_channel() on that the tile has; the last tile may have fewer than tile_channels().
  [[nodiscard]] __device__ int64_t first_channel() const { return first_channel_; }
  [[nodiscard]] __device__ int64_t channel() const { return first_channel_ + int64_t{lane_} * Width; }
  [[nodiscard]] __device__ bool has_channels() const { return channel() < call_.problem.channels; }

  // The chunk's sums in the workspace: one a channel, then that of the weights.
  [[nodiscard]] __device__ float* chunk_sums() const {
    return static_cast<float*>(call_.buffers.workspace) +
           (batch_ * call_.plan.chunks + chunk_) * (call_.problem.channels + 1);
  }

  // Where a group's total of one of this lane's channels, or of its weights, waits in shared memory.
  [[nodiscard]] __device__ float& total(int32_t group, int32_t offset) const {
    return totals_[group * (tile_channels() + 1) + slot(lane_ * Width + offset)];
  }
  [[nodiscard]] __device__ float& total_of_tile_channel(int32_t group, int32_t channel) const {
    return totals_[group * (tile_channels() + 1) + slot(channel)];
  }
  [[nodiscard]] __device__ float& total_weight(int32_t group) const {
    return totals_[group * (tile_channels() + 1) + tile_channels()];
  }

  // This thread's tokens in the step that starts at token `base`.
  [[nodiscard]] __device__ int64_t first_token(int64_t base) const { return base + int64_t{group_} * kRows; }

  [[nodiscard]] __device__ Rows<Width> read(int64_t base) const {
    Rows<Width> rows;
    Pack<T, Width> loaded[kRows];
    const auto* x = static_cast<const Pack<T, Width>*>(call_.buffers.x);
#pragma unroll
    for (int32_t r = 0; r < kRows; ++r) {
      const int64_t token = first_token(base) + r;
      const bool here = token < end();
      rows.weights[r] = here ? weight(token) : 0.0F;
      if (here && has_channels()) {
        loaded[r] = x[pack(token)];
      } else {
        loaded[r] = Pack<T, Width>{};
      }
    }
    evaluate(loaded, &rows);
    return rows;
  }

  __device__ void write(int64_t token, const float (&values)[Width]) const {
    if (!has_channels() || token >= end()) {
      return;
    }
    Pack<T, Width> rounded;
#pragma unroll
    for (int32_t v = 0; v < Width; ++v) {
      round_to(values[v], &rounded.values[v]);
    }
    static_cast<Pack<T, Width>*>(call_.buffers.y)[pack(token)] = rounded;
  }

 private:
  // Neighbouring lanes hit neighbouring banks.
  [[nodiscard]] __device__ int32_t slot(int32_t tile_channel) const {
    return tile_channel % Width * call_.plan.lanes + tile_channel / Width;
  }

  // Index of this lane's pack of a token, in x and in y. Rows are whole packs, and an index of packs rather than of
  // values lets nvcc see that an access is aligned: it splits a 16-byte store otherwise.
  [[nodiscard]] __device__ int64_t pack(int64_t token) const {
    return ((batch_ * call_.problem.tokens + token) * call_.problem.channels + channel()) / Width;
  }

  [[nodiscard]] __device__ float weight(int64_t token) const {
    if (!call_.problem.has_mask) {
      return 1.0F;
    }
    const int64_t row = call_.problem.mask_batch == 1 ? 0 : batch_;
    return read_as_float<T>(call_.buffers.mask, call_.problem.mask_type, row * call_.problem.tokens + token);
  }

  __device__ void stage_coefficients() {
    const auto degree = static_cast<int32_t>(call_.problem.degree);
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < degree * tile_channels(); i += kThreads) {
      const int32_t channel = i / degree;
      const bool here = first_channel_ + channel < call_.problem.channels;
      coefficients_[i % degree * tile_channels() + slot(channel)] =
          here ? read_as_float<T>(call_.buffers.coefficients, call_.problem.coefficient_type,
                                  first_channel_ * degree + i)
               : 0.0F;
    }
    __syncthreads();
  }

  // Horner's rule on all kRows tokens at once, so that one coefficient from shared memory serves kRows products.
  __device__ void evaluate(const Pack<T, Width> (&loaded)[kRows], Rows<Width>* rows) const {
    float h[kRows][Width];
#pragma unroll
    for (int32_t r = 0; r < kRows; ++r) {
#pragma unroll
      for (int32_t v = 0; v < Width; ++v) {
        h[r][v] = activate(to_float(loaded[r].values[v]));
        rows->features[r][v] = 0.0F;
      }
    }
    for (auto power = static_cast<int32_t>(call_.problem.degree) - 1; power >= 0; --power) {
      const float* row = coefficients_ + power * tile_channels() + lane_;
#pragma unroll
      for (int32_t v = 0; v < Width; ++v) {
        const float coefficient = row[v * call_.plan.lanes];
#pragma unroll
        for (int32_t r = 0; r < kRows; ++r) {
          rows->features[r][v] = rows->features[r][v] * h[r][v] + coefficient;
        }
      }
    }
#pragma unroll
    for (int32_t r = 0; r < kRows; ++r) {
#pragma unroll
      for (int32_t v = 0; v < Width; ++v) {
        // A choice, not a product: a token of weight 0 is absent even where it holds a NaN.
        const float feature = rows->features[r][v] * h[r][v];
        rows->features[r][v] = rows->weights[r] == 0.0F ? 0.0F : rows->weights[r] * feature;
      }
    }
  }

  const Call& call_;
  float* coefficients_;
  float* totals_;
  int32_t lane_;
  int32_t group_;
  int64_t first_channel_ = 0;
  int64_t chunk_ = 0;
  int64_t batch_ = 0;
};

}  // namespace pom::cuda
