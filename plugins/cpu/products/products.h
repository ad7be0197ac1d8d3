// The interface of the fused layers' arithmetic: products with weights of 4 or 8 bits, grouped float32 products, norms,
// and elementwise functions, one table of functions an instruction set. Plain data only, as kernel.h explains. Knows
// nothing of ONNX Runtime or of threads: a caller splits the tiles of a product among its threads as it likes, since
// the results are the same bits for every split, and for every number of rows.
//
// Weights of 4 and 8 bits are packed in one layout for all instruction sets:
// - Outputs are in tiles of kTileOutputs, padded to whole tiles; inputs are in blocks, padded to whole blocks.
// - A tile is contiguous. Each of its blocks has kTileOutputs float32 scales, 0 for padded outputs, and then chunks of
//   64 bytes: block / 8 with 4 bits, block / 4 with 8.
// - 4 bits: byte 4 * j + i of chunk c (j an output of the tile, i from 0 to 3) has the weight of the block's input
//   8 * c + i in its low half, and of input 8 * c + 4 + i in its high half. A number v stands for (v - 8) * scale.
// - 8 bits: byte 4 * j + i of chunk c is the weight of the block's input 4 * c + i. A number v stands for
//   (v - 128) * scale.
// Any address will do; multiples of 64 are the fastest.
//
// A product rounds its activations to 8 bits, with a scale for each row and block, as MatMulNBits does at accuracy
// level 4. A row with a number that is not finite has only NaNs in its products.
#pragma once

#include <cstdint>

#include "../kernel.h"

namespace pom::cpu {

inline constexpr int64_t kTileOutputs = 16;
inline constexpr int64_t kSmallestProductBlock = 16;  // a block is a multiple of this
inline constexpr int64_t kLargestProductBlock = 256;

enum class Activation : int32_t { kNone = 0, kGelu = 1 /* with erf */, kRelu = 2, kSilu = 3 };

// Rounded activations, as round_rows writes them.
struct RoundedRows {
  const int8_t* values;        // (rows, stride), 0 beyond the inputs
  const float* scales;         // (rows, blocks)
  const int32_t* corrections;  // (rows, blocks), -8 times the sum of the block's values
  int64_t stride;              // blocks * block
  int64_t blocks;
};

// What becomes of a product: activation(product + bias) * factor + added.
struct Epilogue {
  const float* bias;  // one for each output, or null
  Activation activation;
  float factor;
  const float* added;  // (rows, added_stride), may be y itself; or null
  int64_t added_stride;
};

// y = x * weights, for all rows. y is none of the inputs except, perhaps, epilogue.added.
struct Product {
  RoundedRows x;
  int64_t rows;
  const uint8_t* weights;  // packed, see above
  int64_t bits;            // 4 or 8
  int64_t block;           // 16, 32, 64, 128 or 256
  int64_t outputs;
  float* y;  // (rows, y_stride)
  int64_t y_stride;
  Epilogue epilogue;
};

// A product of each group of inputs with weights of its own, in float32: y[r][g * outputs + n] is the sum over k of
// x[r][g * inputs + k] * weights[g][n][k]. bias has groups * outputs numbers, and added as many columns.
struct GroupedProduct {
  const float* x;  // (rows, x_stride)
  int64_t x_stride;
  int64_t rows;
  const float* weights;  // packed: (groups, tiles, inputs, kTileOutputs), 0 for padded outputs
  int64_t groups;
  int64_t inputs;   // of a group
  int64_t outputs;  // of a group
  float* y;         // (rows, y_stride)
  int64_t y_stride;
  Epilogue epilogue;
};

struct ProductKernel {
  const char* name;
  // Writes values, (rows, blocks * block), scales and corrections, (rows, blocks).
  void (*round_rows)(const float* x, int64_t x_stride, int64_t rows, int64_t inputs, int64_t block, int8_t* values,
                     float* scales, int32_t* corrections);
  // The outputs of tiles [first_tile, last_tile).
  void (*multiply)(const Product& product, int64_t first_tile, int64_t last_tile);
  // The outputs of tiles [first_tile, last_tile) of one group.
  void (*multiply_groups)(const GroupedProduct& product, int64_t group, int64_t first_tile, int64_t last_tile);
  // y = x / sqrt(mean(x^2) + epsilon) * gain; gain may be null. y may be x.
  void (*rms_norm)(const float* x, int64_t x_stride, int64_t rows, int64_t width, float epsilon, const float* gain,
                   float* y, int64_t y_stride);
  // y = (x - mean(x)) / sqrt(variance(x) + epsilon) * gain + bias; gain and bias may be null. y may be x.
  void (*layer_norm)(const float* x, int64_t x_stride, int64_t rows, int64_t width, float epsilon, const float* gain,
                     const float* bias, float* y, int64_t y_stride);
  // y = activation(x) * multiplied * factor + added; multiplied and added may be null. y may be any of them.
  void (*elementwise)(const float* x, const float* added, const float* multiplied, int64_t count, Activation activation,
                      float factor, float* y);
};

// The fastest table for a processor for which `kernel` has been chosen.
const ProductKernel& product_kernel(const Kernel& kernel);

// The tables that this machine can run, fastest first: number `index`, or null beyond the last.
const ProductKernel* runnable_product_kernel(int index);

// One per file; dispatch.cpp determines which of them this machine can run.
extern const ProductKernel kScalarProducts;
extern const ProductKernel kAvx2Products;
extern const ProductKernel kAvxVnniProducts;
extern const ProductKernel kAvx512VnniProducts;
extern const ProductKernel kNeonProducts;
extern const ProductKernel kNeonDotProducts;

}  // namespace pom::cpu
