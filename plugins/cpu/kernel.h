// The interface of an instruction set: loops over the rows of one block of columns. Plain data only.
//
// The files compiled with instruction-set flags include this header, so it must not have inline functions: the linker
// may keep such a file's copy, and the fallback would then run instructions that the processor lacks.
#pragma once

#include <cstdint>

namespace pom::cpu {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

inline constexpr int64_t kMaxBlockColumns = 1024;
inline constexpr int kBlockRows = 8;     // rows that are read together and have a sum of their own
inline constexpr int64_t kPadding = 16;  // float32 scratch is padded to a multiple of this many columns

// Some consecutive tokens of one batch entry, in one block of columns. A column is a group of channels that are
// computed together, one in each part: 1 part without a rotation, 2 with one, and as many as the degree in form
// product.
//
// Every pointer points to the block's first column in the first part. sum, rest, before and means are padded; x, y, cos
// and sin are not, and coefficients may be read kPadding columns beyond the last one.
struct Rows {
  const void* x;
  void* y;                 // features, or averages
  int64_t stride;          // elements from one row of x (and y) to the next
  int64_t part_stride;     // elements from one part of x, y and coefficients to the next
  int64_t scratch_stride;  // as part_stride, for sum, rest and before
  int64_t count;           // rows
  int64_t columns;         // columns of the block, at most kMaxBlockColumns
  int64_t parts;

  const float* coefficients;  // (degree, coefficient_stride), form power
  int64_t coefficient_stride;
  int64_t degree;
  const void* cos;  // (count, table_stride), with a rotation
  const void* sin;
  int64_t table_stride;

  const float* weights;  // (count), or null: all 1
  float* sum;            // (parts, scratch_stride), the running sum of the weighted features
  float* rest;           // (parts, scratch_stride), what sum has lost to rounding

  // For averages.
  const float* before;  // (parts, scratch_stride), the sum of earlier rows, which sum does not include
  const float* scales;  // (count), 1 / sum of the weights so far, or 0 if that is 0, which makes the averages 0
  float* running;       // (2, parts, scratch_stride), for the kernel's own use
  bool streamed;        // y is written past the caches: all kPadding columns of it begin at a multiple of their size
  float* means;         // (count, parts, scratch_stride), instead of y if a gate follows
};

using RowsFunction = void (*)(const Rows& rows);

// p are the features of a row.
struct RowsFunctions {
  RowsFunction features;    // y = p
  RowsFunction accumulate;  // sum += weights * p
  RowsFunction average;     // as accumulate, and y = (before + sum so far) * scales
};

// The functions for one type of x.
struct FeaturesFunctions {
  RowsFunctions power;
  RowsFunctions rotated;           // form power, cos and sin of x's type
  RowsFunctions rotated_by_float;  // form power, cos and sin of float32
  RowsFunctions product;
};

// Some consecutive tokens of the output, in one block of columns: averages of features, and the gate to apply.
struct Output {
  void* y;  // strides are as in Rows
  int64_t stride;
  int64_t part_stride;
  int64_t scratch_stride;
  int64_t count;
  int64_t columns;
  int64_t parts;
  bool streamed;  // y is written past the caches: all kPadding columns of it begin at a multiple of their size

  const float* means;    // (count, parts, scratch_stride), or a single row for all
  int64_t means_stride;  // elements from one row of means to the next, or 0
  const void* gate;      // (count, gate_stride), from the tensor's first column on; of y's type
  const float* gate_bias;
  int64_t gate_stride;
  int64_t channel;     // of the block's first column, in the first part
  int64_t head_width;  // channels that share one gate
};

using OutputFunction = void (*)(const Output& output);

// The functions for one type of y, each in the order of GateActivation.
struct OutputFunctions {
  OutputFunction by_channel[3];  // every channel has its own gate
  OutputFunction by_head[3];
};

struct TypeFunctions {
  FeaturesFunctions features;
  OutputFunctions output;
};

struct Kernel {
  const char* name;
  TypeFunctions float32;
  TypeFunctions float16;
  TypeFunctions bfloat16;
};

// One per file; dispatch.cpp determines which of them this machine can run.
extern const Kernel kScalarKernel;
extern const Kernel kAvx2Kernel;
extern const Kernel kAvx512Kernel;
extern const Kernel kNeonKernel;

}  // namespace pom::cpu
