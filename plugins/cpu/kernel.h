// What an instruction set provides: loops over the rows of one block of columns. Plain data only.
//
// The files compiled with instruction-set flags include this header, so it holds no inline function: the linker may
// keep their copy of one, and then the fallback would run instructions that the processor lacks.
#pragma once

#include <cstdint>

namespace pom::cpu {

struct Half {
  uint16_t bits;
};

inline constexpr int64_t kMaxBlockColumns = 512;
inline constexpr int64_t kPadding = 16;  // rows of float32 scratch are padded to a multiple of this many columns

// Some consecutive tokens of one batch entry, in one block of columns. A column is the channels that are computed
// together, one in each part: 1 part without a rotation, 2 with one, and as many as degree in form product.
//
// Every pointer points at the block's first column, in the first part. The float32 arrays over columns are padded; x,
// y, cos and sin are not.
struct Rows {
  const void* x;
  void* y;                 // null where nothing is written
  int64_t stride;          // elements from one row of x (and y) to the next
  int64_t part_stride;     // elements from one part of x (and y) to the next
  int64_t scratch_stride;  // the same for sum, rest, and a row of coefficients
  int64_t count;           // rows
  int64_t columns;         // of the block, at most kMaxBlockColumns
  int64_t parts;

  const float* coefficients;  // (degree, coefficient_stride), form power
  int64_t coefficient_stride;
  int64_t degree;
  const void* cos;  // (count, table_stride), with a rotation
  const void* sin;
  int64_t table_stride;

  const float* weights;  // (count), or null: all 1
  const float* scales;   // (count), 1 / sum of the weights so far, or 0 where that sum is 0
  float* sum;            // (parts, columns), the running sum of the weighted features
  float* rest;           // (parts, columns), what rounding has lost of it
};

using RowsFunction = void (*)(const Rows& rows);

// p being the features of a row.
struct RowsFunctions {
  RowsFunction features;    // y = p
  RowsFunction accumulate;  // sum += weights * p
  RowsFunction causal;      // the same, and y = sum * scales after every row
};

// For one type of x.
struct FeaturesFunctions {
  RowsFunctions power;
  RowsFunctions rotated;           // form power, cos and sin of x's type
  RowsFunctions rotated_by_float;  // form power, cos and sin of float32
  RowsFunctions product;
};

struct Kernel {
  const char* name;
  FeaturesFunctions float32;
  FeaturesFunctions float16;
};

// One a file; dispatch.cpp says which of them this machine can run.
extern const Kernel kScalarKernel;
extern const Kernel kAvx2Kernel;

}  // namespace pom::cpu
