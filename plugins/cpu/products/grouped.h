// Products of groups of inputs with float32 weights.
//
// A few vectors of outputs are multiplied by a few rows at a time, whose sums are in registers. A sum has its terms in
// the order of the inputs, whatever the number of rows.
#pragma once

#include "epilogue.h"
#include "int4.h"

namespace pom::cpu {
namespace {

constexpr int64_t kSingleRowTiles = 4;  // their sums wait for themselves, but not for each other

// Rows x of one group, times kTiles tiles: sums, (kRows, kTiles * kTileOutputs).
template <typename I, int kRows, int kTiles>
void multiply_group_rows(const float* x, int64_t x_stride, const float* weights, int64_t inputs, float* result) {
  using V = typename I::Float;
  constexpr int kVectors = kTiles * kTileVectors<I>;
  const int64_t tile_floats = inputs * kTileOutputs;
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
    V weight[kVectors];
#pragma GCC unroll 16
    for (int vector = 0; vector < kVectors; ++vector) {
      weight[vector] = V::load(weights + k * kTileOutputs + vector_offset<I>(vector, tile_floats, 1), AllLanes{});
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

// As many rows as there are whole kRows of them, from row `row` on, in kTiles tiles. Returns the next row.
template <typename I, int kRows, int kTiles>
int64_t multiply_group_tiles(const GroupedProduct& product, int64_t group, int64_t tile, int64_t row) {
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
  return row;
}

template <typename I, int kTiles>
void multiply_group_tiles(const GroupedProduct& product, int64_t group, int64_t tile) {
  int64_t row = multiply_group_tiles<I, I::kFloatRows, kTiles>(product, group, tile, 0);
  if constexpr (I::kFloatRows > 4) {
    row = multiply_group_tiles<I, 4, kTiles>(product, group, tile, row);
  }
  multiply_group_tiles<I, 1, kTiles>(product, group, tile, row);
}

template <typename I>
void multiply_groups(const GroupedProduct& product, int64_t group, int64_t first_tile, int64_t last_tile) {
  int64_t tile = first_tile;
  for (; product.rows < 4 && tile + kSingleRowTiles <= last_tile; tile += kSingleRowTiles) {
    multiply_group_tiles<I, 1, kSingleRowTiles>(product, group, tile, 0);
  }
  for (; tile + I::kFloatTiles <= last_tile; tile += I::kFloatTiles) {
    multiply_group_tiles<I, I::kFloatTiles>(product, group, tile);
  }
  for (; tile < last_tile; ++tile) {
    multiply_group_tiles<I, 1>(product, group, tile);
  }
}

}  // namespace
}  // namespace pom::cpu
