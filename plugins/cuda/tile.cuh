// A block's tile: the tokens and channels of its threads, and where their sums are combined.
#pragma once

#include "call.h"
#include "pack.cuh"

namespace pom::cuda {

// The tile that a block computes.
struct Position {
  int32_t batch;
  int32_t chunk;
  int32_t column_tile;
};

// Adjacent blocks first follow the channels, then the tokens.
__device__ __forceinline__ Position position_by_chunk(const Plan& plan, uint32_t block) {
  const auto chunks = static_cast<uint32_t>(plan.chunks);
  const auto column_tiles = static_cast<uint32_t>(plan.column_tiles);
  const uint32_t row = block / column_tiles;
  return {static_cast<int32_t>(row / chunks), static_cast<int32_t>(row % chunks),
          static_cast<int32_t>(block % column_tiles)};
}

// The channels of a column: `packs` of them, or 0 or less for a column past the last. See plan.h.
struct Place {
  int32_t channel;
  int32_t distance;
  int32_t packs;
};

// What the tiles of all forms share. Each form derives from it and adds
//   prepare()                what all threads of the block do together once, with a barrier at its end
//   features(base, loaded)   the weighted features of the step that starts at token `base`
template <typename T, int32_t Width, int32_t Packs>
class TileBase {
 public:
  using Type = T;
  static constexpr int32_t kWidth = Width;
  static constexpr int32_t kPacks = Packs;
  static constexpr int32_t kRows = rows_at_once(Packs);  // consecutive tokens that a thread processes at once
  static constexpr int32_t kValues = Packs * Width;      // channels per thread
  static constexpr int32_t kLaneFloats = lane_floats(kValues);

  // A thread's values in a step; zeros for a token of weight 0, or past the chunk's end.
  struct Rows {
    float features[kRows][kValues];
    float weights[kRows];
  };

  // The packs of x in a step.
  struct Loaded {
    Pack<T, Width> packs[kRows][Packs];
  };

  // `totals` points to shared memory after that of the derived tile.
  __device__ TileBase(const Call& call, Position position, float* totals)
      : call_(call),
        position_(position),
        all_totals_(totals),
        totals_(totals),
        lane_(static_cast<int32_t>(threadIdx.x) % call.plan.lanes),
        group_(static_cast<int32_t>(threadIdx.x) / call.plan.lanes),
        first_column_(position.column_tile * (call.plan.lanes * Width)),
        place_(place_of(column())),
        pack_distance_(has(Packs - 1) ? place_.distance / Width : 0),
        x_(address_in_x(pack_index(group_ * kRows, has(0) ? channel(0) : 0))) {
    move_to(position.chunk);
  }

  // Moves to another chunk of the same columns.
  __device__ void move_to(int32_t chunk) {
    const auto tokens = static_cast<int32_t>(call_.problem.tokens);
    position_.chunk = chunk;
    begin_ = chunk * call_.plan.chunk_tokens;
    end_ = tokens - begin_ < call_.plan.chunk_tokens ? tokens : begin_ + call_.plan.chunk_tokens;
  }

  [[nodiscard]] __device__ Position position() const { return position_; }
  [[nodiscard]] __device__ int32_t group() const { return group_; }
  [[nodiscard]] __device__ int32_t tile_channels() const { return call_.plan.lanes * kValues; }
  [[nodiscard]] __device__ int32_t begin() const { return begin_; }
  [[nodiscard]] __device__ int32_t end() const { return end_; }
  // The number of tokens in a step.
  [[nodiscard]] __device__ int32_t step_tokens() const { return call_.plan.groups * kRows; }
  [[nodiscard]] __device__ int32_t base_of(int32_t step) const { return begin_ + step * step_tokens(); }
  [[nodiscard]] __device__ bool has_mask() const { return call_.problem.has_mask; }
  // For mode "causal": whether the weights are summed like the features. Otherwise their sum follows from a token's
  // number.
  [[nodiscard]] __device__ bool sums_weights() const { return call_.plan.sums_weights; }
  [[nodiscard]] __device__ bool is_first() const { return position_.column_tile == 0; }
  [[nodiscard]] __device__ bool has(int32_t pack) const { return pack < place_.packs; }
  [[nodiscard]] __device__ int32_t channel(int32_t pack) const { return place_.channel + pack * place_.distance; }

  // The distance from one group's totals to the next one's: a tile's channels, padded, and the weights.
  [[nodiscard]] __device__ int32_t tile_floats() const { return call_.plan.lanes * kLaneFloats; }
  [[nodiscard]] __device__ int32_t row_floats() const { return tile_floats() + 1; }

  // A group's total of one of this lane's channels, or of its weights, in shared memory. After the groups, there is a
  // row for what precedes the tile.
  [[nodiscard]] __device__ float& total(int32_t group, int32_t value) const {
    return totals_[group * row_floats() + lane_ * kLaneFloats + value];
  }
  [[nodiscard]] __device__ float& total_of_tile_channel(int32_t group, int32_t tile_channel) const {
    return totals_[group * row_floats() + slot(tile_channel)];
  }
  [[nodiscard]] __device__ float& total_weight(int32_t group) const {
    return totals_[group * row_floats() + tile_floats()];
  }
  [[nodiscard]] __device__ int32_t before() const { return call_.plan.groups; }

  // Mode "causal" has two sets of totals, so that one chunk's can still be read while the next one's are written.
  __device__ void use_totals(int32_t set) { totals_ = all_totals_ + set * totals_floats(); }

  // The bias of the gates for this lane's channels, after the totals, if the plan has it.
  [[nodiscard]] __device__ float& bias(int32_t value) const { return biases()[lane_ * kLaneFloats + value]; }
  [[nodiscard]] __device__ float& bias_of_tile_channel(int32_t tile_channel) const {
    return biases()[slot(tile_channel)];
  }

  // The channel that corresponds to a tile's channel; -1 if there is none, since a tile may be wider than the rest.
  [[nodiscard]] __device__ int32_t channel_of(int32_t tile_channel) const {
    const int32_t value = tile_channel % kValues;
    const Place place = place_of(first_column_ + tile_channel / kValues * Width + value % Width);
    const int32_t pack = value / Width;
    return pack < place.packs ? place.channel + pack * place.distance : -1;
  }

  // The number of a token among those of the whole batch.
  [[nodiscard]] __device__ int64_t row(int32_t token) const { return position_.batch * call_.problem.tokens + token; }

  // This thread's tokens in the step that starts at token `base`.
  [[nodiscard]] __device__ int32_t first_token(int32_t base) const { return base + group_ * kRows; }

  // Loads a step.
  [[nodiscard]] __device__ Loaded load(int32_t base) const {
    if constexpr (!kIsAny<T>) {
      return load_stored<Pack<T, Width>>(base);
    } else {
      return type() == DataType::kFloat32 ? load_stored<uint32_t>(base) : load_stored<uint16_t>(base);
    }
  }

  // A token of the chunk to read instead of one past its end, whose values are then dropped.
  [[nodiscard]] __device__ int32_t present(int32_t token) const { return token < end_ ? token : end_ - 1; }

  // `values` starts with those of the pack.
  __device__ void write(int32_t token, int32_t pack, const float* values) const {
    if (!has(pack) || token >= end()) {
      return;
    }
    write_packed<T, Width>(values, call_.buffers.output, type(), pack_index(token, channel(pack)));
  }

 protected:
  // The type of x.
  [[nodiscard]] __device__ DataType type() const { return call_.problem.data_type; }

  [[nodiscard]] __device__ Pack<T, Width> load_pack(int32_t token, int32_t first_channel) const {
    return read_packed<T, Width>(call_.buffers.x, type(), pack_index(token, first_channel));
  }

  __device__ void load_weights(int32_t base, Rows* rows) const {
    const int64_t first = call_.problem.mask_batch == 1 ? 0 : position_.batch * call_.problem.tokens;
#pragma unroll
    for (int32_t r = 0; r < kRows; ++r) {
      const int32_t token = first_token(base) + r;
      rows->weights[r] = token < end_ ? 1.0F : 0.0F;
      if (has_mask() && token < end_) {
        rows->weights[r] =
            call_.plan.weight_scale * read_as_float<T>(call_.buffers.mask, call_.problem.mask_type, first + token);
      }
    }
  }

  // Whether all tokens of a step exist, and whether all have weight 1: the same for all threads of the block.
  [[nodiscard]] __device__ bool is_full(int32_t base) const { return end_ - base >= step_tokens(); }
  [[nodiscard]] __device__ bool is_unweighted(int32_t base) const { return !has_mask() && is_full(base); }

  // A select instead of a product, because a token of weight 0 is absent even if it contains a NaN.
  __device__ void weigh(int32_t base, Rows* rows) const {
    if (is_unweighted(base)) {
      return;
    }
#pragma unroll
    for (int32_t r = 0; r < kRows; ++r) {
#pragma unroll
      for (int32_t v = 0; v < kValues; ++v) {
        const float weight = rows->weights[r];
        rows->features[r][v] = weight == 0.0F ? 0.0F : weight * rows->features[r][v];
      }
    }
  }

  [[nodiscard]] __device__ int32_t totals_floats() const { return (call_.plan.groups + 1) * row_floats(); }
  [[nodiscard]] __device__ float* biases() const { return all_totals_ + 2 * totals_floats(); }
  [[nodiscard]] __device__ static int32_t slot(int32_t tile_channel) {
    return tile_channel / kValues * kLaneFloats + tile_channel % kValues;
  }

  [[nodiscard]] __device__ int32_t column() const { return first_column_ + lane_ * Width; }

  const Call& call_;
  Position position_;
  float* const all_totals_;
  float* totals_;
  const int32_t lane_;
  const int32_t group_;
  const int32_t first_column_;
  int32_t begin_ = 0;
  int32_t end_ = 0;
  const Place place_;

 private:
  const int32_t pack_distance_;  // the distance between the packs that load reads
  // This thread's first pack of chunk 0.
  const void* const x_;

  // Loads a step, in the type of x's memory. There is no branch between the loads, so that all are in flight at once: a
  // token or a column that does not exist reads another's, and weigh or write drops it.
  template <typename Stored>
  [[nodiscard]] __device__ Loaded load_stored(int32_t base) const {
    Loaded loaded;
    const Stored* from = static_cast<const Stored*>(x_) + int64_t{base} * row_packs();
    if (is_full(base)) {
#pragma unroll
      for (int32_t r = 0; r < kRows; ++r) {
#pragma unroll
        for (int32_t p = 0; p < Packs; ++p) {
          loaded.packs[r][p] = {from[int64_t{r} * row_packs() + p * pack_distance_]};
        }
      }
      return loaded;
    }
    const int32_t last = end_ - 1 - first_token(base);
#pragma unroll
    for (int32_t r = 0; r < kRows; ++r) {
      const int32_t row = r < last ? r : last;  // below 0 if not even the first exists
#pragma unroll
      for (int32_t p = 0; p < Packs; ++p) {
        loaded.packs[r][p] = {from[int64_t{row} * row_packs() + p * pack_distance_]};
      }
    }
    return loaded;
  }

  [[nodiscard]] __device__ const void* address_in_x(int64_t index) const {
    if constexpr (!kIsAny<T>) {
      return static_cast<const Pack<T, Width>*>(call_.buffers.x) + index;
    } else {
      return static_cast<const char*>(call_.buffers.x) + (type() == DataType::kFloat32 ? 4 : 2) * index;
    }
  }

  [[nodiscard]] __device__ int32_t row_packs() const { return static_cast<int32_t>(call_.problem.channels) / Width; }

  [[nodiscard]] __device__ Place place_of(int32_t column) const {
    const auto channels = static_cast<int32_t>(call_.problem.channels);
    if constexpr (Packs == 1) {
      return {column, 0, column < channels ? 1 : 0};
    } else {
      const int32_t run = call_.plan.run;
      const int32_t pair = column / run;
      const int32_t runs_left = channels / run - Packs * pair;
      return {column + (Packs - 1) * pair * run, run, runs_left};
    }
  }

  // The index of a token's pack, in x and in the output. Rows consist of whole packs, and indexing packs instead of
  // values lets nvcc see that an access is aligned; it would otherwise split a 16-byte store.
  [[nodiscard]] __device__ int64_t pack_index(int32_t token, int32_t first_channel) const {
    return row(token) * row_packs() + first_channel / Width;
  }
};

}  // namespace pom::cuda
