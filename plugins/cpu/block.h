// What the features and the loops share: a block of rows, and how they see the vector type.
//
// All in an anonymous namespace, and without the standard library: each file that includes this gets its own copy,
// compiled with its own flags (see kernel.h). The same holds for every header that includes this one.
//
// The vector type V, which an instruction set's file defines, holds kWidth float32 lanes: load and store (of float,
// Half or BFloat16; all lanes or the first few); broadcast, add, subtract, multiply, divide, multiply_add, at_least and
// at_most, which keep a NaN in their first operand, and multiply_exp2(v, biased), which is v * 2^n where biased is
// n + kRoundingBias (exp2.h), as far as the result is a normal number. kFused says whether multiply_add is one
// instruction. Where kStreams, there is stream, which stores all lanes of one vector or of two neighbours past the
// caches, at a multiple of their size (of kPadding elements, where that is less), and finish_streams, before others may
// read them.
#pragma once

#include "kernel.h"

#define POM_ALWAYS_INLINE __attribute__((always_inline))

namespace pom::cpu {
namespace {

struct AllLanes {};
struct FirstLanes {
  int64_t count;
};

// What a token of weight 0 is read from, in every part: its features are 0, whatever the token itself holds.
template <typename T>
alignas(64) const T kAbsentRow[kMaxBlockColumns] = {};

// kSize rows from `first` on, and what their features count.
template <typename T, int kSize, bool kWeighted>
struct Block {
  using Element = T;
  static constexpr int kRows = kSize;

  const Rows& rows;
  const int64_t first;

  POM_ALWAYS_INLINE Block(const Rows& all, int64_t first_row) : rows(all), first(first_row) {
    for (int row = 0; row < kRows; ++row) {
      if constexpr (kWeighted) {
        weights_[row] = rows.weights == nullptr ? 1.0F : rows.weights[first + row];
        part_stride_[row] = is_absent(row) ? 0 : rows.part_stride;
      }
      x_[row] = row_of<T>(rows.x, rows.stride, row);
    }
  }

  // A row of x in one part.
  [[nodiscard]] POM_ALWAYS_INLINE const T* x(int64_t part, int row) const {
    return x_[row] + part * (kWeighted ? part_stride_[row] : rows.part_stride);
  }

  // Asks for what rows further down have at some vectors of columns. The processor's own prefetching ends with every
  // page, and a row is often one.
  template <typename V, int kVectors>
  POM_ALWAYS_INLINE void prefetch(int64_t further, int64_t part, int64_t column) const {
    constexpr int64_t kLine = 64 / sizeof(T);
    constexpr int64_t kColumns = V::kWidth * kVectors;
    if (kColumns < kLine && column % kLine != 0) {
      return;
    }
    const T* x = static_cast<const T*>(rows.x) + (first + further) * rows.stride + part * rows.part_stride + column;
    for (int row = 0; row < kRows; ++row) {
      for (int64_t line = 0; line < kColumns; line += kLine) {
        __builtin_prefetch(x + row * rows.stride + line, 0, 2);
      }
    }
  }

  // The same token's row of a tensor, in its first part.
  template <typename Other>
  [[nodiscard]] POM_ALWAYS_INLINE const Other* row_of(const void* tensor, int64_t stride, int row) const {
    return is_absent(row) ? kAbsentRow<Other> : static_cast<const Other*>(tensor) + (first + row) * stride;
  }

  template <typename V>
  [[nodiscard]] POM_ALWAYS_INLINE V add(V total, V p, int row) const {
    if constexpr (kWeighted) {
      return V::multiply_add(p, V::broadcast(weights_[row]), total);
    } else {
      return V::add(total, p);
    }
  }

 private:
  [[nodiscard]] POM_ALWAYS_INLINE bool is_absent(int row) const { return kWeighted && weights_[row] == 0.0F; }

  const T* x_[kRows];
  int64_t part_stride_[kRows];
  float weights_[kRows];
};

}  // namespace
}  // namespace pom::cpu
