// Products of rounded activations with 4-bit weights.
//
// A panel, some blocks of a group of tiles, is multiplied by a few rows at a time, whose integer and float32 sums are
// in registers. For few rows, the weights are unpacked as they are read; for more, once into a buffer that stays in the
// first-level cache. Every result is the same sum in the same order either way.
//
// The instruction set I has a vector type Float (see block.h), and for integers: Bytes, one byte for each of 4 inputs
// of Float::kWidth outputs; load, store, low and high (the halves of bytes); Sum, int32 for each output; start(number),
// add, to_float; and step, which adds the products of 16 inputs. A register tile has kRows rows and kTiles tiles; with
// fewer than kChains sums, there are several of each, since an addition waits for the one before it.
#pragma once

#include "epilogue.h"

namespace pom::cpu {
namespace {

constexpr int64_t kStepInputs = 16;
constexpr int64_t kScalesBytes = kTileOutputs * 4;  // of a block
constexpr int64_t kPartBytes = kTileOutputs * 4;    // 4 inputs, unpacked; or 8 inputs, packed
constexpr int64_t kStepParts = kStepInputs / 4;
constexpr int64_t kPanelInputs = 768;  // at most
constexpr int64_t kChunkRows = 96;     // at most: their activations stay in the second-level cache

template <typename I>
constexpr int kTileVectors = static_cast<int>(kTileOutputs) / I::Float::kWidth;

// Some blocks of some tiles, and the rows to multiply them by.
struct Panel {
  const uint8_t* packed;    // the first tile's first block
  const uint8_t* unpacked;  // (tiles, kPanelInputs / 4, kPartBytes), or null
  int64_t tile_bytes;       // from one packed tile to the next
  int64_t block;
  int64_t blocks;
  const int8_t* values;  // the first row's first block, as scales and corrections
  int64_t stride;
  const float* scales;
  const int32_t* corrections;
  int64_t row_blocks;
  bool begins;  // else it continues sums
  float* sums;  // (rows, kTiles * kTileOutputs)
};

// Part 0 to 3 of a step of 16 inputs, for one vector of outputs, from its bytes in the step's first part.
struct Packed {
  static constexpr int64_t kStepBytes = kStepParts / 2 * kPartBytes;
  template <typename I>
  POM_ALWAYS_INLINE static typename I::Bytes part(const uint8_t* step, int part) {
    const typename I::Bytes both = I::load(step + part / 2 * kPartBytes);
    return part % 2 == 0 ? I::low(both) : I::high(both);
  }
};
struct Unpacked {
  static constexpr int64_t kStepBytes = kStepParts * kPartBytes;
  template <typename I>
  POM_ALWAYS_INLINE static typename I::Bytes part(const uint8_t* step, int part) {
    return I::load(step + part * kPartBytes);
  }
};

// Where a vector of a group of tiles begins, in data of which a tile has tile_bytes, and a lane lane_bytes.
template <typename I>
POM_ALWAYS_INLINE inline int64_t vector_offset(int vector, int64_t tile_bytes, int64_t lane_bytes) {
  constexpr int kVectors = kTileVectors<I>;
  return vector / kVectors * tile_bytes + vector % kVectors * I::Float::kWidth * lane_bytes;
}

// Integer sums of one block.
template <typename I, int kRows, int kVectors>
struct Sums {
  static constexpr int kChains = (I::kChains + kRows * kVectors - 1) / (kRows * kVectors);
  typename I::Sum chains[kChains][kRows][kVectors];

  POM_ALWAYS_INLINE Sums(const int32_t* corrections, int64_t row_blocks) {
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
      for (int vector = 0; vector < kVectors; ++vector) {
        chains[0][row][vector] = I::start(corrections[row * row_blocks]);
#pragma GCC unroll 8
        for (int chain = 1; chain < kChains; ++chain) {
          chains[chain][row][vector] = I::start(0);
        }
      }
    }
  }

  [[nodiscard]] POM_ALWAYS_INLINE typename I::Float total(int row, int vector) const {
    typename I::Sum sum = chains[0][row][vector];
#pragma GCC unroll 8
    for (int chain = 1; chain < kChains; ++chain) {
      sum = I::add(sum, chains[chain][row][vector]);
    }
    return I::to_float(sum);
  }
};

template <typename I, typename Source, int kRows, int kTiles>
void multiply_panel(const Panel& panel) {
  using V = typename I::Float;
  constexpr int kVectors = kTiles * kTileVectors<I>;
  constexpr int64_t kSumsStride = kTiles * kTileOutputs;
  const bool unpacked = panel.unpacked != nullptr;
  const int64_t tile_bytes = unpacked ? kPanelInputs / 4 * kPartBytes : panel.tile_bytes;
  const int64_t block = panel.block;
  const int64_t block_bytes = kScalesBytes + block / 8 * kPartBytes;
  V sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
    for (int vector = 0; vector < kVectors; ++vector) {
      sums[row][vector] = panel.begins
                              ? V::broadcast(0.0F)
                              : V::load(panel.sums + row * kSumsStride + vector * V::kWidth, AllLanes{});
    }
  }
  const uint8_t* weights = unpacked ? panel.unpacked : panel.packed;
  const int8_t* values = panel.values;
#pragma GCC unroll 1
  for (int64_t b = 0; b < panel.blocks; ++b) {
    const uint8_t* const scales = panel.packed + b * block_bytes;
    weights = unpacked ? weights : scales + kScalesBytes;
    Sums<I, kRows, kVectors> products(panel.corrections + b, panel.row_blocks);
#pragma GCC unroll 1
    for (int64_t i = 0; i < block; i += kStepInputs) {
      I::template step<Source, kRows, kVectors>(weights, tile_bytes, values, panel.stride, &products);
      weights += Source::kStepBytes;
      values += kStepInputs;
    }
#pragma GCC unroll 16
    for (int vector = 0; vector < kVectors; ++vector) {
      const auto* from =
          reinterpret_cast<const float*>(scales + vector_offset<I>(vector, panel.tile_bytes, sizeof(float)));
      const V weight_scale = V::load(from, AllLanes{});
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row) {
        const V scale = V::multiply(V::broadcast(panel.scales[row * panel.row_blocks + b]), weight_scale);
        sums[row][vector] = V::multiply_add(products.total(row, vector), scale, sums[row][vector]);
      }
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
    for (int vector = 0; vector < kVectors; ++vector) {
      V::store(panel.sums + row * kSumsStride + vector * V::kWidth, sums[row][vector], AllLanes{});
    }
  }
}

// All rows of a panel, kRows at a time and then the rest.
template <typename I, typename Source, int kTiles, int kRows>
POM_ALWAYS_INLINE inline void multiply_rows(Panel panel, int64_t rows) {
  while (rows >= kRows) {
    multiply_panel<I, Source, kRows, kTiles>(panel);
    panel.values += kRows * panel.stride;
    panel.scales += kRows * panel.row_blocks;
    panel.corrections += kRows * panel.row_blocks;
    panel.sums += kRows * kTiles * kTileOutputs;
    rows -= kRows;
  }
  if constexpr (kRows > 1) {
    multiply_rows<I, Source, kTiles, kRows - 1>(panel, rows);
  }
}

// The weights of some blocks of kTiles tiles, one byte each, without the scales.
template <typename I, int kTiles>
void unpack(const uint8_t* packed, int64_t tile_bytes, int64_t block, int64_t blocks, uint8_t* unpacked) {
  const int64_t block_bytes = kScalesBytes + block / 8 * kPartBytes;
  constexpr int64_t kVectorBytes = I::Float::kWidth * 4;
  for (int64_t tile = 0; tile < kTiles; ++tile) {
    uint8_t* to = unpacked + tile * (kPanelInputs / 4 * kPartBytes);
    for (int64_t b = 0; b < blocks; ++b) {
      const uint8_t* const from = packed + tile * tile_bytes + b * block_bytes + kScalesBytes;
      for (int64_t i = 0; i < block / 8 * kPartBytes; i += kPartBytes) {
        for (int64_t j = 0; j < kPartBytes; j += kVectorBytes) {
          const typename I::Bytes both = I::load(from + i + j);
          I::store(to + j, I::low(both));
          I::store(to + kPartBytes + j, I::high(both));
        }
        to += 2 * kPartBytes;
      }
    }
  }
}

// kTiles tiles from `tile` on, for rows [first_row, first_row + rows).
template <typename I, int kTiles>
void multiply_tiles(const Product& product, int64_t tile, int64_t first_row, int64_t rows) {
  alignas(64) uint8_t unpacked[kTiles * kPanelInputs / 4 * kPartBytes];
  alignas(64) float sums[kChunkRows * kTiles * kTileOutputs];
  const RoundedRows& x = product.x;
  const int64_t block_bytes = kScalesBytes + product.block / 8 * kPartBytes;
  Panel panel{};
  panel.tile_bytes = x.blocks * block_bytes;
  panel.block = product.block;
  panel.stride = x.stride;
  panel.row_blocks = x.blocks;
  panel.sums = sums;
  const bool unpacks = rows > I::kRows;
  panel.unpacked = unpacks ? unpacked : nullptr;
  const int64_t step = unpacks ? kPanelInputs / product.block : x.blocks;
  for (int64_t b = 0; b < x.blocks; b += step) {
    panel.packed = product.weights + tile * panel.tile_bytes + b * block_bytes;
    panel.blocks = x.blocks - b < step ? x.blocks - b : step;
    panel.values = x.values + first_row * x.stride + b * product.block;
    panel.scales = x.scales + first_row * x.blocks + b;
    panel.corrections = x.corrections + first_row * x.blocks + b;
    panel.begins = b == 0;
    if (unpacks) {
      unpack<I, kTiles>(panel.packed, panel.tile_bytes, product.block, panel.blocks, unpacked);
      multiply_rows<I, Unpacked, kTiles, I::kRows>(panel, rows);
    } else {
      multiply_rows<I, Packed, kTiles, I::kRows>(panel, rows);
    }
  }
  const int64_t column = tile * kTileOutputs;
  const int64_t left = product.outputs - column;
  const int64_t columns = left < kTiles * kTileOutputs ? left : kTiles * kTileOutputs;
  finish_rows<typename I::Float>(product.epilogue, sums, kTiles * kTileOutputs, first_row, rows, column, columns,
                                 product.y, product.y_stride);
}

template <typename I>
void multiply(const Product& product, int64_t first_tile, int64_t last_tile) {
  for (int64_t row = 0; row < product.rows; row += kChunkRows) {
    const int64_t rows = product.rows - row < kChunkRows ? product.rows - row : kChunkRows;
    int64_t tile = first_tile;
    // A single row's tiles are read one after the other, as they are in memory.
    for (; rows > 1 && tile + I::kTiles <= last_tile; tile += I::kTiles) {
      multiply_tiles<I, I::kTiles>(product, tile, row, rows);
    }
    for (; tile < last_tile; ++tile) {
      multiply_tiles<I, 1>(product, tile, row, rows);
    }
  }
}

}  // namespace
}  // namespace pom::cpu
