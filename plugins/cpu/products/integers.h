// Products of rounded activations with weights of 4 and 8 bits.
//
// A few rows are multiplied by a few tiles at a time, whose integer and float32 sums are in registers. With many rows,
// a panel of the tiles, some of their blocks, stays in the first-level cache while all rows are multiplied by it. Every
// result is the same sum in the same order either way.
//
// The instruction set I has a vector type Float (see block.h), and for integers: Bytes, one byte for each of 4 inputs
// of Float::kWidth outputs; load, low and high (the halves of bytes); Sum, int32 for each output; start(number), add,
// to_float; and step and step8, which add the products of 16 inputs with weights of 4 and 8 bits: see StepByParts. With
// kSigned, step8 multiplies by weights from -128 to 127, and not by numbers that are 128 more. A register tile has
// kRows rows and kTiles tiles; with fewer than kChains sums, there are several of each, since an addition waits for the
// one before it.
#pragma once

#include "epilogue.h"

namespace pom::cpu {
namespace {

constexpr int64_t kStepInputs = 16;
constexpr int64_t kScalesBytes = kTileOutputs * 4;  // of a block
constexpr int64_t kChunkBytes = kTileOutputs * 4;   // 8 inputs of 4 bits, or 4 of 8
template <int kBits>
constexpr int64_t kStepBytes = kStepInputs * kTileOutputs / 8 * kBits;
constexpr int kStepParts = 4;
constexpr int64_t kPanelInputs = 768;   // of 4 bits
constexpr int64_t kTogetherRows = 128;  // their activations stay in the second-level cache
// With so few rows, tiles are read one after the other, as they are in memory; with more, activations are read often
// enough to need the first-level cache.
constexpr int64_t kFewRows = 2;
// How far ahead of few rows weights are fetched: further than the processor reads ahead by itself.
constexpr int64_t kAheadBytes = 4096;

template <typename I>
constexpr int kTileVectors = static_cast<int>(kTileOutputs) / I::Float::kWidth;

// Some blocks of some tiles, and the rows to multiply them by.
struct Panel {
  const uint8_t* weights;  // the first tile's first block
  int64_t tile_bytes;      // from one tile to the next
  int64_t ahead;           // bytes from a weight to one that is needed later
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

template <int kBits>
POM_ALWAYS_INLINE inline int64_t block_bytes(int64_t block) {
  return kScalesBytes + block / kStepInputs * kStepBytes<kBits>;
}

// Where a vector of a group of tiles begins, in data of which a tile has tile_bytes, and a lane lane_bytes.
template <typename I>
POM_ALWAYS_INLINE inline int64_t vector_offset(int vector, int64_t tile_bytes, int64_t lane_bytes) {
  constexpr int kVectors = kTileVectors<I>;
  return vector / kVectors * tile_bytes + vector % kVectors * I::Float::kWidth * lane_bytes;
}

// Part 0 to 3 of a step of 16 inputs, for one vector of outputs: inputs 4 * part to 4 * part + 3.
template <typename I>
POM_ALWAYS_INLINE inline typename I::Bytes step_part(const uint8_t* step, int part) {
  const typename I::Bytes both = I::load(step + part / 2 * kChunkBytes);
  return part % 2 == 0 ? I::low(both) : I::high(both);
}

// Integer sums of one block, which begin with `factor` times the corrections.
template <typename I, int kRows, int kVectors>
struct Sums {
  static constexpr int kChains = (I::kChains + kRows * kVectors - 1) / (kRows * kVectors);
  typename I::Sum chains[kChains][kRows][kVectors];

  POM_ALWAYS_INLINE Sums(const int32_t* corrections, int64_t row_blocks, int32_t factor) {
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
      for (int vector = 0; vector < kVectors; ++vector) {
        chains[0][row][vector] = I::start(corrections[row * row_blocks] * factor);
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

// The steps of an instruction set that adds the products of 4 inputs at once: dot(sum, bytes, inputs(values)), where
// whole(bytes) are weights of 8 bits.
template <typename I>
struct StepByParts {
  template <int kRows, int kVectors>
  POM_ALWAYS_INLINE static void step(const uint8_t* weights, int64_t tile_bytes, const int8_t* values, int64_t stride,
                                     Sums<I, kRows, kVectors>* sums) {
    add_parts(values, stride, sums, [&](int part, int vector) POM_ALWAYS_INLINE {
      return step_part<I>(weights + vector_offset<I>(vector, tile_bytes, 4), part);
    });
  }

  template <int kRows, int kVectors>
  POM_ALWAYS_INLINE static void step8(const uint8_t* weights, int64_t tile_bytes, const int8_t* values, int64_t stride,
                                      Sums<I, kRows, kVectors>* sums) {
    add_parts(values, stride, sums, [&](int part, int vector) POM_ALWAYS_INLINE {
      return I::whole(I::load(weights + vector_offset<I>(vector, tile_bytes, 4) + part * kChunkBytes));
    });
  }

 private:
  template <int kRows, int kVectors, typename Weights>
  POM_ALWAYS_INLINE static void add_parts(const int8_t* values, int64_t stride, Sums<I, kRows, kVectors>* sums,
                                          Weights bytes_of) {
#pragma GCC unroll 4
    for (int part = 0; part < kStepParts; ++part) {
      auto* const chain = sums->chains[part % Sums<I, kRows, kVectors>::kChains];
      typename I::Bytes bytes[kVectors];
#pragma GCC unroll 16
      for (int vector = 0; vector < kVectors; ++vector) {
        bytes[vector] = bytes_of(part, vector);
      }
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row) {
        const auto inputs = I::inputs(values + row * stride + part * 4);
#pragma GCC unroll 16
        for (int vector = 0; vector < kVectors; ++vector) {
          chain[row][vector] = I::dot(chain[row][vector], bytes[vector], inputs);
        }
      }
    }
  }
};

template <typename I, int kBits, int kRows, int kTiles>
void multiply_panel(const Panel& panel) {
  using V = typename I::Float;
  // The corrections are for weights that are 8 too large; those of 8 bits are 128 too large, if at all.
  constexpr int32_t kCorrection = kBits == 4 ? 1 : I::kSigned ? 0 : 16;
  constexpr int kVectors = kTiles * kTileVectors<I>;
  constexpr int64_t kSumsStride = kTiles * kTileOutputs;
  const int64_t tile_bytes = panel.tile_bytes;
  V sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 16
    for (int vector = 0; vector < kVectors; ++vector) {
      const float* const from = panel.sums + row * kSumsStride + vector * V::kWidth;
      sums[row][vector] = panel.begins ? V::broadcast(0.0F) : V::load(from, AllLanes{});
    }
  }
  const uint8_t* weights = panel.weights;
  const int8_t* values = panel.values;
#pragma GCC unroll 1
  for (int64_t b = 0; b < panel.blocks; ++b) {
    const uint8_t* const scales = weights;
    weights += kScalesBytes;
    Sums<I, kRows, kVectors> products(panel.corrections + b, panel.row_blocks, kCorrection);
#pragma GCC unroll 1
    for (int64_t i = 0; i < panel.block; i += kStepInputs) {
#pragma GCC unroll 4
      for (int tile = 0; tile < kTiles; ++tile) {
        for (int64_t line = 0; line < kStepBytes<kBits>; line += kChunkBytes) {
          __builtin_prefetch(weights + panel.ahead + tile * tile_bytes + line);
        }
      }
      if constexpr (kBits == 4) {
        I::template step<kRows, kVectors>(weights, tile_bytes, values, panel.stride, &products);
      } else {
        I::template step8<kRows, kVectors>(weights, tile_bytes, values, panel.stride, &products);
      }
      weights += kStepBytes<kBits>;
      values += kStepInputs;
    }
#pragma GCC unroll 16
    for (int vector = 0; vector < kVectors; ++vector) {
      const auto* from = reinterpret_cast<const float*>(scales + vector_offset<I>(vector, tile_bytes, sizeof(float)));
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
template <typename I, int kBits, int kTiles, int kRows>
POM_ALWAYS_INLINE inline void multiply_rows(Panel panel, int64_t rows) {
  while (rows >= kRows) {
    multiply_panel<I, kBits, kRows, kTiles>(panel);
    panel.values += kRows * panel.stride;
    panel.scales += kRows * panel.row_blocks;
    panel.corrections += kRows * panel.row_blocks;
    panel.sums += kRows * kTiles * kTileOutputs;
    panel.ahead = 0;
    rows -= kRows;
  }
  if constexpr (kRows > 1) {
    multiply_rows<I, kBits, kTiles, kRows - 1>(panel, rows);
  }
}

// kTiles tiles from `tile` on, for rows [first_row, first_row + rows).
template <typename I, int kBits, int kTiles>
void multiply_tiles(const Product& product, int64_t tile, int64_t first_row, int64_t rows) {
  alignas(64) float sums[kTogetherRows * kTiles * kTileOutputs];
  const RoundedRows& x = product.x;
  const int64_t bytes = block_bytes<kBits>(product.block);
  Panel panel{};
  panel.tile_bytes = x.blocks * bytes;
  panel.block = product.block;
  panel.stride = x.stride;
  panel.row_blocks = x.blocks;
  panel.sums = sums;
  const bool whole = rows <= kFewRows;
  const int64_t step = whole ? x.blocks : kPanelInputs * 4 / kBits / product.block;
  for (int64_t b = 0; b < x.blocks; b += step) {
    const bool last = b + step >= x.blocks;
    panel.weights = product.weights + tile * panel.tile_bytes + b * bytes;
    panel.ahead = whole ? kAheadBytes : last ? kTiles * panel.tile_bytes - b * bytes : step * bytes;
    panel.blocks = last ? x.blocks - b : step;
    panel.values = x.values + first_row * x.stride + b * product.block;
    panel.scales = x.scales + first_row * x.blocks + b;
    panel.corrections = x.corrections + first_row * x.blocks + b;
    panel.begins = b == 0;
    multiply_rows<I, kBits, kTiles, I::kRows>(panel, rows);
  }
  const int64_t column = tile * kTileOutputs;
  const int64_t left = product.outputs - column;
  const int64_t columns = left < kTiles * kTileOutputs ? left : kTiles * kTileOutputs;
  finish_rows<typename I::Float>(product.epilogue, sums, kTiles * kTileOutputs, first_row, rows, column, columns,
                                 product.y, product.y_stride);
}

template <typename I, int kBits>
void multiply_bits(const Product& product, int64_t first_tile, int64_t last_tile) {
  for (int64_t row = 0; row < product.rows; row += kTogetherRows) {
    const int64_t rows = product.rows - row < kTogetherRows ? product.rows - row : kTogetherRows;
    int64_t tile = first_tile;
    for (; rows > kFewRows && tile + I::kTiles <= last_tile; tile += I::kTiles) {
      multiply_tiles<I, kBits, I::kTiles>(product, tile, row, rows);
    }
    for (; tile < last_tile; ++tile) {
      multiply_tiles<I, kBits, 1>(product, tile, row, rows);
    }
  }
}

template <typename I>
void multiply(const Product& product, int64_t first_tile, int64_t last_tile) {
  if (product.bits == 8) {
    multiply_bits<I, 8>(product, first_tile, last_tile);
  } else {
    multiply_bits<I, 4>(product, first_tile, last_tile);
  }
}

}  // namespace
}  // namespace pom::cpu
