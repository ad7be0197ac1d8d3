// What an instruction set provides: loops over the rows of one block of channels. Plain data only.
//
// The files compiled with instruction-set flags include this header, so it holds no inline function: the linker may
// keep their copy of one, and then the fallback would run instructions that the processor lacks.
#pragma once

#include <cstdint>

namespace pom::cpu {

struct Half {
  uint16_t bits;
};

inline constexpr int64_t kMaxBlockChannels = 512;
inline constexpr int64_t kPadding = 16;  // rows of float32 scratch are padded to a multiple of this many channels

// Some consecutive tokens of one batch entry, in one block of at most kMaxBlockChannels channels. Every pointer points
// at the block's first channel; the float32 arrays over channels are padded, x and y are not.
struct Rows {
  const void* x;
  void* y;                    // null where nothing is written
  int64_t stride;             // elements from one row of x (and y) to the next
  int64_t count;              // rows
  int64_t channels;           // channels of the block
  const float* coefficients;  // (degree, coefficient_stride)
  int64_t coefficient_stride;
  int64_t degree;
  const float* weights;  // (count), or null: all 1
  const float* scales;   // (count), 1 / sum of the weights so far, or 0 where that sum is 0
  float* sum;            // (channels), the running sum of the weighted polynomials
  float* rest;           // (channels), what rounding has lost of it
};

using RowsFunction = void (*)(const Rows& rows);

struct RowsFunctions {
  RowsFunction features;    // y = p
  RowsFunction accumulate;  // sum += weights * p
  RowsFunction causal;      // the same, and y = sum * scales after every row
};

struct Kernel {
  const char* name;
  RowsFunctions float32;
  RowsFunctions float16;
};

// One a file; dispatch.cpp says which of them this machine can run.
extern const Kernel kScalarKernel;
extern const Kernel kAvx2Kernel;

}  // namespace pom::cpu
