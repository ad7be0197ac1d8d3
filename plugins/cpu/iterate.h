// Iteration over rows and columns, and stores.
#pragma once

#include "block.h"

namespace pom::cpu {
namespace {

// A compile-time number.
template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// Vectors, kTogether at a time, then the remaining ones one by one.
template <typename V, int kTogether, typename Body>
POM_ALWAYS_INLINE inline void for_each_vectors(int64_t columns, const Body& body) {
  int64_t column = 0;
  for (; column + kTogether * V::kWidth <= columns; column += kTogether * V::kWidth) {
    body(column, AllLanes{}, Constant<kTogether>{});
  }
  if constexpr (kTogether > 1) {
    for (; column + V::kWidth <= columns; column += V::kWidth) {
      body(column, AllLanes{}, Constant<1>{});
    }
  }
  if constexpr (V::kWidth > 1) {
    if (column < columns) {
      body(column, FirstLanes{columns - column}, Constant<1>{});
    }
  }
}

template <typename V, typename Body>
POM_ALWAYS_INLINE inline void for_each_vector(int64_t columns, const Body& body) {
  for_each_vectors<V, 1>(columns, [&](int64_t column, auto lanes, auto) POM_ALWAYS_INLINE { body(column, lanes); });
}

// Rows in blocks of kBlock, then the remaining ones one by one.
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

// Stores adjacent vectors: all lanes of kCount vectors, or the first few lanes of one.
template <bool kStreamed, int kCount, typename V, typename T>
POM_ALWAYS_INLINE inline void write_vectors(T* to, const V* values, AllLanes lanes) {
  if constexpr (kStreamed && kCount % 2 == 0) {
    for (int i = 0; i < kCount; i += 2) {
      V::stream(to + i * V::kWidth, values[i], values[i + 1]);
    }
  } else {
    for (int i = 0; i < kCount; ++i) {
      if constexpr (kStreamed) {
        V::stream(to + i * V::kWidth, values[i]);
      } else {
        V::store(to + i * V::kWidth, values[i], lanes);
      }
    }
  }
}

template <bool kStreamed, int kCount, typename V, typename T>
POM_ALWAYS_INLINE inline void write_vectors(T* to, const V* values, FirstLanes lanes) {
  static_assert(kCount == 1, "the last vector stands alone");
  V::store(to, *values, lanes);
}

}  // namespace
}  // namespace pom::cpu
