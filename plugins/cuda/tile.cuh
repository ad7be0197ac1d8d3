// One block's tile: which tokens and channels its threads have, and where their sums meet.
#pragma once

#include "call.h"
#include "scalar.cuh"

namespace pom::cuda {

// The channels of a column: `packs` of them, 0 for a column past the last. See plan.h.
struct Place {
  int64_t channel;
  int64_t distance;
  int64_t packs;
};

// What the tiles of all forms share. Each derives from it and adds read(base): the weighted features of the step that
// starts at token `base`.
template <typename T, int32_t Width, int32_t Packs>
class TileBase {
 public:
  using Type = T;
  static constexpr int32_t kWidth = Width;
  static constexpr int32_t kPacks = Packs;
  static constexpr int32_t kRows = kLoads / Packs;   // consecutive tokens of a thread at once
  static constexpr int32_t kValues = Packs * Width;  // channels of a thread

  // What a thread has of a step. A token of weight 0, or past the chunk's end, holds zeros.
  struct Rows {
    float features[kRows][kValues];
    float weights[kRows];
  };

  // `totals`: shared memory, behind what the derived tile keeps there.
  __device__ TileBase(const Call& call, float* totals)
      : call_(call),
        totals_(totals),
        lane_(static_cast<int32_t>(threadIdx.x) % call.plan.lanes),
        group_(static_cast<int32_t>(threadIdx.x) / call.plan.lanes) {
    const int64_t block = blockIdx.x;
    const int64_t row = block / call.plan.column_tiles;
    first_column_ = block % call.plan.column_tiles * (call.plan.lanes * Width);
    chunk_ = row % call.plan.chunks;
    batch_ = row / call.plan.chunks;
    place_ = place_of(column());
  }

  [[nodiscard]] __device__ int32_t group() const { return group_; }
  [[nodiscard]] __device__ int32_t tile_channels() const { return call_.plan.lanes * kValues; }
  [[nodiscard]] __device__ int64_t begin() const { return chunk_ * call_.plan.chunk_tokens; }
  [[nodiscard]] __device__ int64_t end() const {
    const int64_t end = begin() + call_.plan.chunk_tokens;
    return end < call_.problem.tokens ? end : call_.problem.tokens;
  }
  [[nodiscard]] __device__ int64_t step() const { return int64_t{call_.plan.groups} * kRows; }
  [[nodiscard]] __device__ bool is_first() const { return first_column_ == 0; }
  [[nodiscard]] __device__ bool has(int32_t pack) const { return pack < place_.packs; }
  [[nodiscard]] __device__ int64_t channel(int32_t pack) const { return place_.channel + pack * place_.distance; }

  // The chunk's sums in the workspace: one a channel, then that of the weights.
  [[nodiscard]] __device__ float* chunk_sums() const {
    return static_cast<float*>(call_.buffers.workspace) +
           (batch_ * call_.plan.chunks + chunk_) * (call_.problem.channels + 1);
  }

  // Where a group's total of one of this lane's channels, or of its weights, waits in shared memory.
  [[nodiscard]] __device__ float& total(int32_t group, int32_t value) const {
    return totals_[group * (tile_floats() + 1) + lane_ * kLaneFloats + value];
  }
  [[nodiscard]] __device__ float& total_of_tile_channel(int32_t group, int32_t tile_channel) const {
    return totals_[group * (tile_floats() + 1) + slot(tile_channel)];
  }
  [[nodiscard]] __device__ float& total_weight(int32_t group) const {
    return totals_[group * (tile_floats() + 1) + tile_floats()];
  }

  // Behind the totals, where the plan has it: the bias of the gates over this lane's channels.
  [[nodiscard]] __device__ float& bias(int32_t value) const { return biases()[lane_ * kLaneFloats + value]; }
  [[nodiscard]] __device__ float& bias_of_tile_channel(int32_t tile_channel) const {
    return biases()[slot(tile_channel)];
  }

  // The channel that a tile's channel is, -1 for none: a tile may be wider than what is left.
  [[nodiscard]] __device__ int64_t channel_of(int32_t tile_channel) const {
    const int32_t value = tile_channel % kValues;
    const Place place = place_of(first_column_ + tile_channel / kValues * Width + value % Width);
    const int32_t pack = value / Width;
    return pack < place.packs ? place.channel + pack * place.distance : -1;
  }

  // Number of a token among those of the whole batch.
  [[nodiscard]] __device__ int64_t row(int64_t token) const { return batch_ * call_.problem.tokens + token; }

  // This thread's tokens in the step that starts at token `base`.
  [[nodiscard]] __device__ int64_t first_token(int64_t base) const { return base + int64_t{group_} * kRows; }

  // `values` starts with those of the pack.
  __device__ void write(int64_t token, int32_t pack, const float* values) const {
    if (!has(pack) || token >= end()) {
      return;
    }
    Pack<T, Width> rounded;
#pragma unroll
    for (int32_t v = 0; v < Width; ++v) {
      round_to(values[v], &rounded.values[v]);
    }
    static_cast<Pack<T, Width>*>(call_.buffers.output)[pack_index(token, channel(pack))] = rounded;
  }

 protected:
  [[nodiscard]] __device__ Pack<T, Width> load(int64_t token, int64_t first_channel) const {
    return static_cast<const Pack<T, Width>*>(call_.buffers.x)[pack_index(token, first_channel)];
  }

  [[nodiscard]] __device__ float weight(int64_t token) const {
    if (!call_.problem.has_mask) {
      return 1.0F;
    }
    const int64_t row = call_.problem.mask_batch == 1 ? 0 : batch_;
    return read_as_float<T>(call_.buffers.mask, call_.problem.mask_type, row * call_.problem.tokens + token);
  }

  // Load a step, zeros where there is nothing.
  __device__ void load_rows(int64_t base, Pack<T, Width> (&loaded)[kRows][Packs], Rows* rows) const {
#pragma unroll
    for (int32_t r = 0; r < kRows; ++r) {
      const int64_t token = first_token(base) + r;
      const bool here = token < end();
      rows->weights[r] = here ? weight(token) : 0.0F;
#pragma unroll
      for (int32_t p = 0; p < Packs; ++p) {
        if (here && has(p)) {
          loaded[r][p] = load(token, channel(p));
        } else {
          loaded[r][p] = Pack<T, Width>{};
        }
      }
    }
  }

  // A choice, not a product: a token of weight 0 is absent even where it holds a NaN.
  [[nodiscard]] __device__ static float weighted(float feature, float weight) {
    return weight == 0.0F ? 0.0F : weight * feature;
  }

  static constexpr int32_t kLaneFloats = lane_floats(kValues);
  [[nodiscard]] __device__ float* biases() const { return totals_ + call_.plan.groups * (tile_floats() + 1); }
  [[nodiscard]] __device__ int32_t tile_floats() const { return call_.plan.lanes * kLaneFloats; }
  [[nodiscard]] __device__ static int32_t slot(int32_t tile_channel) {
    return tile_channel / kValues * kLaneFloats + tile_channel % kValues;
  }

  [[nodiscard]] __device__ int64_t column() const { return first_column_ + int64_t{lane_} * Width; }

  const Call& call_;
  float* totals_;
  int32_t lane_;
  int32_t group_;
  int64_t first_column_ = 0;
  int64_t chunk_ = 0;
  int64_t batch_ = 0;
  Place place_{};

 private:
  [[nodiscard]] __device__ Place place_of(int64_t column) const {
    const int64_t channels = call_.problem.channels;
    if constexpr (Packs == 1) {
      return {column, 0, column < channels ? 1 : 0};
    } else {
      const int64_t run = call_.plan.run;
      const int64_t pair = column / run;
      const int64_t runs_left = channels / run - Packs * pair;
      return {column + (Packs - 1) * pair * run, run, runs_left};
    }
  }

  // Index of a token's pack, in x and in the output. Rows are whole packs, and an index of packs rather than of values
  // lets nvcc see that an access is aligned: it splits a 16-byte store otherwise.
  [[nodiscard]] __device__ int64_t pack_index(int64_t token, int64_t first_channel) const {
    return (row(token) * call_.problem.channels + first_channel) / Width;
  }
};

}  // namespace pom::cuda
