// The loops of every mode, over a vector type V that an instruction set's file defines.
//
// All in an anonymous namespace, and without the standard library: each file that includes this gets its own copy,
// compiled with its own flags (see kernel.h).
//
// V holds kWidth float32 lanes: load, store (of float or Half; all lanes or the first few), broadcast, and add,
// subtract, multiply, multiply_add, at_least, at_most; the last two keep a NaN in their first operand.
#pragma once

#include "kernel.h"
#include "pom/contract.h"

#define POM_ALWAYS_INLINE __attribute__((always_inline))

namespace pom::cpu {
namespace {

// Rows are read in blocks, so that the running sum is touched once a block, and computed a few at a time, so that
// their multiply-adds overlap and still fit the registers.
constexpr int kBlockRows = 8;
constexpr int kRowsAtOnce = 4;

struct AllLanes {};
struct FirstLanes {
  int64_t count;
};

template <int kRows>
struct BlockSize {
  static constexpr int value = kRows;
};

// What a token of weight 0 is read from: p(0) = 0, whatever the token itself holds.
template <typename T>
alignas(64) const T kAbsentRow[kMaxBlockChannels] = {};

template <typename V, typename Body>
POM_ALWAYS_INLINE inline void for_each_vector(int64_t channels, const Body& body) {
  int64_t channel = 0;
  for (; channel + V::kWidth <= channels; channel += V::kWidth) {
    body(channel, AllLanes{});
  }
  if constexpr (V::kWidth > 1) {
    if (channel < channels) {
      body(channel, FirstLanes{channels - channel});
    }
  }
}

template <typename Body>
POM_ALWAYS_INLINE inline void for_each_block(int64_t rows, const Body& body) {
  int64_t row = 0;
  for (; row + kBlockRows <= rows; row += kBlockRows) {
    body(row, BlockSize<kBlockRows>{});
  }
  for (; row < rows; ++row) {
    body(row, BlockSize<1>{});
  }
}

template <typename V>
POM_ALWAYS_INLINE inline V activation(V x) {
  const V leaky = V::at_least(x, V::multiply(x, V::broadcast(kLeakySlope)));
  return V::at_most(V::at_least(leaky, V::broadcast(kClampLow)), V::broadcast(kClampHigh));
}

// p = sum of coefficients[k] * h^(k + 1), by Horner's rule, for kRows rows at the vector of channels from `channel`.
template <typename V, int kRows, typename T, typename Lanes>
POM_ALWAYS_INLINE inline void polynomial(const Rows& rows, const T* const* x, int64_t channel, Lanes lanes, V* p) {
  const float* coefficients = rows.coefficients + channel + (rows.degree - 1) * rows.coefficient_stride;
  V h[kRows];
  for (int row = 0; row < kRows; ++row) {
    h[row] = activation(V::load(x[row] + channel, lanes));
    p[row] = V::load(coefficients, AllLanes{});
  }
  for (int64_t k = rows.degree - 1; k > 0; --k) {
    coefficients -= rows.coefficient_stride;
    const V coefficient = V::load(coefficients, AllLanes{});
    for (int row = 0; row < kRows; ++row) {
      p[row] = V::multiply_add(p[row], h[row], coefficient);
    }
  }
  for (int row = 0; row < kRows; ++row) {
    p[row] = V::multiply(p[row], h[row]);
  }
}

// The rows of one block, and what their polynomials count.
template <typename T, int kRows, bool kWeighted>
struct Block {
  const T* x[kRows];
  float weights[kRows];

  POM_ALWAYS_INLINE Block(const Rows& rows, int64_t first) {
    for (int row = 0; row < kRows; ++row) {
      x[row] = static_cast<const T*>(rows.x) + (first + row) * rows.stride;
      if constexpr (kWeighted) {
        weights[row] = rows.weights[first + row];
        if (weights[row] == 0.0F) {
          x[row] = kAbsentRow<T>;
        }
      }
    }
  }

  template <typename V>
  POM_ALWAYS_INLINE V add(V total, V p, int row) const {
    if constexpr (kWeighted) {
      return V::multiply_add(p, V::broadcast(weights[row]), total);
    } else {
      return V::add(total, p);
    }
  }
};

// sum += term, with the rounding error added to rest (Knuth's two-sum): long sums stay at float32's own precision.
template <typename V>
POM_ALWAYS_INLINE inline void add_compensated(float* sum, float* rest, V term) {
  const V old = V::load(sum, AllLanes{});
  const V updated = V::add(old, term);
  const V taken = V::subtract(updated, old);
  const V lost = V::add(V::subtract(old, V::subtract(updated, taken)), V::subtract(term, taken));
  V::store(sum, updated, AllLanes{});
  V::store(rest, V::add(V::load(rest, AllLanes{}), lost), AllLanes{});
}

template <typename V, typename T>
void features(const Rows& rows) {
  for_each_block(rows.count, [&](int64_t first, auto size) POM_ALWAYS_INLINE {
    constexpr int kRows = decltype(size)::value;
    constexpr int kStep = kRows < kRowsAtOnce ? kRows : kRowsAtOnce;
    const Block<T, kRows, false> block(rows, first);
    T* y = static_cast<T*>(rows.y) + first * rows.stride;
    for_each_vector<V>(rows.channels, [&](int64_t channel, auto lanes) POM_ALWAYS_INLINE {
      for (int row = 0; row < kRows; row += kStep) {
        V p[kStep];
        polynomial<V, kStep>(rows, block.x + row, channel, lanes, p);
        for (int i = 0; i < kStep; ++i) {
          V::store(y + (row + i) * rows.stride + channel, p[i], lanes);
        }
      }
    });
  });
}

template <typename V, typename T, bool kWeighted>
void accumulate_weighted(const Rows& rows) {
  for_each_block(rows.count, [&](int64_t first, auto size) POM_ALWAYS_INLINE {
    constexpr int kRows = decltype(size)::value;
    constexpr int kStep = kRows < kRowsAtOnce ? kRows : kRowsAtOnce;
    const Block<T, kRows, kWeighted> block(rows, first);
    for_each_vector<V>(rows.channels, [&](int64_t channel, auto lanes) POM_ALWAYS_INLINE {
      V total = V::broadcast(0.0F);
      for (int row = 0; row < kRows; row += kStep) {
        V p[kStep];
        polynomial<V, kStep>(rows, block.x + row, channel, lanes, p);
        for (int i = 0; i < kStep; ++i) {
          total = block.add(total, p[i], row + i);
        }
      }
      add_compensated(rows.sum + channel, rows.rest + channel, total);
    });
  });
}

template <typename V, typename T, bool kWeighted>
void causal_weighted(const Rows& rows) {
  for_each_block(rows.count, [&](int64_t first, auto size) POM_ALWAYS_INLINE {
    constexpr int kRows = decltype(size)::value;
    constexpr int kStep = kRows < kRowsAtOnce ? kRows : kRowsAtOnce;
    const Block<T, kRows, kWeighted> block(rows, first);
    T* y = static_cast<T*>(rows.y) + first * rows.stride;
    for_each_vector<V>(rows.channels, [&](int64_t channel, auto lanes) POM_ALWAYS_INLINE {
      const V sum = V::load(rows.sum + channel, AllLanes{});
      const V rest = V::load(rows.rest + channel, AllLanes{});
      V total = V::broadcast(0.0F);
      for (int row = 0; row < kRows; row += kStep) {
        V p[kStep];
        polynomial<V, kStep>(rows, block.x + row, channel, lanes, p);
        for (int i = 0; i < kStep; ++i) {
          total = block.add(total, p[i], row + i);
          const float scale = rows.scales[first + row + i];
          const V so_far = V::add(sum, V::add(rest, total));
          // Not sum * 0 where the weights sum to 0: the sum may be NaN.
          const V mean = scale == 0.0F ? V::broadcast(0.0F) : V::multiply(so_far, V::broadcast(scale));
          V::store(y + (row + i) * rows.stride + channel, mean, lanes);
        }
      }
      add_compensated(rows.sum + channel, rows.rest + channel, total);
    });
  });
}

template <typename V, typename T>
void accumulate(const Rows& rows) {
  rows.weights == nullptr ? accumulate_weighted<V, T, false>(rows) : accumulate_weighted<V, T, true>(rows);
}

template <typename V, typename T>
void causal(const Rows& rows) {
  rows.weights == nullptr ? causal_weighted<V, T, false>(rows) : causal_weighted<V, T, true>(rows);
}

template <typename V, typename T>
constexpr RowsFunctions rows_functions() {
  return {features<V, T>, accumulate<V, T>, causal<V, T>};
}

}  // namespace
}  // namespace pom::cpu
