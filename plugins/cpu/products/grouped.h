// Products of groups of inputs with float32 weights.
//
// A few tiles of outputs are multiplied by a few rows at a time, whose sums are in registers. A sum has its terms in
// the order of the inputs, whatever the number of rows.
#pragma once

#include "epilogue.h"
#include "integers.h"

namespace pom::cpu {
namespace {

// Few rows have more tiles at a time: their sums wait for themselves, but not for each other.
constexpr int kFewRowsTiles = 4;
constexpr int64_t kFewGroupRows = 3;
// Tiles of at most this size are followed soon by the next ones, which are then fetched ahead.
constexpr int64_t kSmallTilesBytes = 32768;

// kRows rows x of one group, times kTiles tiles: sums, (kRows, kTiles * kTileOutputs).
template <typename I, int kRows, int kTiles>
void multiply_group_rows(const float* x, int64_t x_stride, const float* weights, int64_t inputs, float* result) {
  using V = typename I::Float;
  constexpr int kVectors = kTiles * kTileVectors<I>;
  constexpr int64_t kSize = sizeof(float);
  const int64_t tile_floats = inputs * kTileOutputs;
  const int64_t next = kTiles * tile_floats;
  const int64_t ahead = next * kSize <= kSmallTilesBytes ? next : kAheadBytes / kSize;
  V sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
    for (int vector = 0; vector < kVectors; ++vector) {
      sums[row][vector] = V::broadcast(0.0F);
    }
  }
#pragma GCC unroll 1
  for (int64_t k = 0; k < inputs; ++k) {
    const float* const from = weights + k * kTileOutputs;
#pragma GCC unroll 4
    for (int tile = 0; tile < kTiles; ++tile) {
      __builtin_prefetch(from + tile * tile_floats + ahead);
    }
    V weight[kVectors];
#pragma GCC unroll 16
    for (int vector = 0; vector < kVectors; ++vector) {
      weight[vector] = V::load(from + vector_offset<I>(vector, tile_floats, 1), AllLanes{});
    }
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const V value = V::broadcast(x[row * x_stride + k]);
#pragma GCC unroll 16
      for (int vector = 0; vector < kVectors; ++vector) {
        sums[row][vector] = V::multiply_add(value, weight[vector], sums[row][vector]);
      }
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
    for (int vector = 0; vector < kVectors; ++vector) {
      V::store(result + (row * kVectors + vector) * V::kWidth, sums[row][vector], AllLanes{});
    }
  }
}

// kTiles tiles from `tile` on, for rows from `row` on: kRows at a time, and then the rest.
template <typename I, int kTiles, int kRows>
void multiply_group_tiles(const GroupedProduct& product, int64_t group, int64_t tile, int64_t row) {
  alignas(64) float sums[kRows * kTiles * kTileOutputs];
  const int64_t tiles = (product.outputs + kTileOutputs - 1) / kTileOutputs;
  const float* weights = product.weights + (group * tiles + tile) * product.inputs * kTileOutputs;
  const int64_t left = product.outputs - tile * kTileOutputs;
  const int64_t columns = left < kTiles * kTileOutputs ? left : kTiles * kTileOutputs;
  const int64_t column = group * product.outputs + tile * kTileOutputs;
  for (; row + kRows <= product.rows; row += kRows) {
    const float* x = product.x + row * product.x_stride + group * product.inputs;
    multiply_group_rows<I, kRows, kTiles>(x, product.x_stride, weights, product.inputs, sums);
    finish_rows<typename I::Float>(product.epilogue, sums, kTiles * kTileOutputs, row, kRows, column, columns,
                                   product.y, product.y_stride);
  }
  if constexpr (kRows > 1) {
    multiply_group_tiles<I, kTiles, kRows - 1>(product, group, tile, row);
  }
}

template <typename I>
void multiply_groups(const GroupedProduct& product, int64_t group, int64_t first_tile, int64_t last_tile) {
  int64_t tile = first_tile;
  for (; product.rows <= kFewGroupRows && tile + kFewRowsTiles <= last_tile; tile += kFewRowsTiles) {
    multiply_group_tiles<I, kFewRowsTiles, 1>(product, group, tile, 0);
  }
  for (; tile + I::kFloatTiles <= last_tile; tile += I::kFloatTiles) {
    multiply_group_tiles<I, I::kFloatTiles, I::kFloatRows>(product, group, tile, 0);
  }
  for (; tile < last_tile; ++tile) {
    multiply_group_tiles<I, 1, I::kFloatRows>(product, group, tile, 0);
  }
}

}  // namespace
}  // namespace pom::cpu
