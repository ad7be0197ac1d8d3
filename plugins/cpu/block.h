// What features and loops share: a block of rows, and the interface of the vector type.
//
// Everything is in an anonymous namespace and does without the standard library: each file that includes this gets its
// own copy, compiled with its own flags (see kernel.h). The same holds for every header that includes this one.
//
// The vector type V, defined in vectors/, has kWidth float32 lanes and these operations: load and
// store (float, Half or BFloat16; all lanes or the first few); broadcast, add, subtract, multiply, divide,
// multiply_add; at_least and at_most, which keep a NaN in their first operand; and multiply_exp2(v, biased), which is v
// * 2^n if biased is n + kRoundingBias (exp2.h) and the result is a normal number. kFused says whether multiply_add is
// a single instruction. If kStreams, there are also stream, which stores all lanes of one vector or of two adjacent
// ones past the caches, at a multiple of their size (of kPadding elements, if that is smaller), and finish_streams,
// which must be called before others may read them.
#pragma once

#include "kernel.h"

#define POM_ALWAYS_INLINE __attribute__((always_inline))

namespace pom::cpu {
namespace {

struct AllLanes {};
struct FirstLanes {
  int64_t count;
};

// Replaces the data of a token with weight 0, in every part, so that its features are 0 whatever the token contains.
template <typename T>
alignas(64) const T kAbsentRow[kMaxBlockColumns] = {};

// kSize rows from `first` on, and the weights of their features.
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

  // A row of x, in one part.
  [[nodiscard]] POM_ALWAYS_INLINE const T* x(int64_t part, int row) const {
    return x_[row] + part * (kWeighted ? part_stride_[row] : rows.part_stride);
  }

  // Prefetches some vectors of columns of later rows. The processor's own prefetching ends with every page, and a row
  // is often one page.
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

  // The row of the same token in another tensor, in its first part.
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
