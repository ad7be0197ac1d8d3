// How rows and columns are walked.
#pragma once

#include "block.h"

namespace pom::cpu {
namespace {

// A number that is known when the code is compiled.
template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

template <typename V, typename Body>
POM_ALWAYS_INLINE inline void for_each_vector(int64_t columns, const Body& body) {
  int64_t column = 0;
  for (; column + V::kWidth <= columns; column += V::kWidth) {
    body(column, AllLanes{});
  }
  if constexpr (V::kWidth > 1) {
    if (column < columns) {
      body(column, FirstLanes{columns - column});
    }
  }
}

// Rows in blocks of kBlock, and what remains one by one.
template <int kBlock, typename Body>
POM_ALWAYS_INLINE inline void for_each_block(int64_t rows, const Body& body) {
  int64_t row = 0;
  for (; row + kBlock <= rows; row += kBlock) {
    body(row, Constant<kBlock>{});
  }
  for (; row < rows; ++row) {
    body(row, Constant<1>{});
  }
}

}  // namespace
}  // namespace pom::cpu
