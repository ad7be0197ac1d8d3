// The features p of each form, for a block of rows: one class per form, with one instance per block.
//
// kParts is the number of parts of a column, or 0 if it depends on the call. compute() is called for all columns of a
// part, and then for those of the next part, for some vectors of a few rows at a time, where a row's vectors are
// adjacent. State is what a vector passes on to the next part.
#pragma once

#include "block.h"
#include "gelu.h"
#include "pom/contract.h"

namespace pom::cpu {
namespace {

template <typename V>
POM_ALWAYS_INLINE inline V activation(V x) {
  const V leaky = V::at_least(x, V::multiply(x, V::broadcast(kLeakySlope)));
  return V::at_most(V::at_least(leaky, V::broadcast(kClampLow)), V::broadcast(kClampHigh));
}

// Some vectors of some rows, and the position of the i-th.
template <typename V, int kStepRows, int kStepVectors>
struct Step {
  static constexpr int kVectors = kStepVectors;
  static constexpr int kCount = kStepRows * kVectors;
  static constexpr int row(int i) { return i / kVectors; }
  static constexpr int vector(int i) { return i % kVectors; }
  static constexpr int column(int i) { return vector(i) * V::kWidth; }
};

// p = sum of coefficients[k] * h^(k + 1), by Horner's rule, for the vectors of a step.
template <typename V, typename Step, typename Block, typename Lanes>
POM_ALWAYS_INLINE inline void polynomial(const Block& block, int64_t part, int row, int64_t column, Lanes lanes, V* p) {
  const Rows& rows = block.rows;
  const float* coefficients =
      rows.coefficients + part * rows.part_stride + column + (rows.degree - 1) * rows.coefficient_stride;
  V h[Step::kCount];
  for (int i = 0; i < Step::kCount; ++i) {
    h[i] = activation(V::load(block.x(part, row + Step::row(i)) + column + Step::column(i), lanes));
    p[i] = V::load(coefficients + Step::column(i), AllLanes{});
  }
  for (int64_t k = rows.degree - 1; k > 0; --k) {
    coefficients -= rows.coefficient_stride;
    for (int i = 0; i < Step::kCount; ++i) {
      p[i] = V::multiply_add(p[i], h[i], V::load(coefficients + Step::column(i), AllLanes{}));
    }
  }
  for (int i = 0; i < Step::kCount; ++i) {
    p[i] = V::multiply(p[i], h[i]);
  }
}

template <typename V, typename Block>
struct Power {
  static constexpr int kParts = 1;
  struct State {};

  const Block& block;

  template <typename Step, typename Lanes>
  POM_ALWAYS_INLINE void compute(int64_t part, int row, int64_t column, Lanes lanes, State*, V* p) const {
    polynomial<V, Step>(block, part, row, column, lanes, p);
  }
};

// Form power with channels rotated in pairs, one channel in each part.
template <typename V, typename Block, typename Table>
struct RotatedPower {
  static constexpr int kParts = 2;
  struct State {
    V second[Block::kRows];
  };

  const Block& block;
  const Table* cos[Block::kRows];
  const Table* sin[Block::kRows];

  POM_ALWAYS_INLINE explicit RotatedPower(const Block& rows) : block(rows) {
    for (int row = 0; row < Block::kRows; ++row) {
      cos[row] = block.template row_of<Table>(block.rows.cos, block.rows.table_stride, row);
      sin[row] = block.template row_of<Table>(block.rows.sin, block.rows.table_stride, row);
    }
  }

  template <typename Step, typename Lanes>
  POM_ALWAYS_INLINE void compute(int64_t part, int row, int64_t column, Lanes lanes, State* states, V* p) const {
    if (part == 1) {
      for (int i = 0; i < Step::kCount; ++i) {
        p[i] = states[Step::vector(i)].second[row + Step::row(i)];
      }
      return;
    }
    V first[Step::kCount];
    V second[Step::kCount];
    polynomial<V, Step>(block, 0, row, column, lanes, first);
    polynomial<V, Step>(block, 1, row, column, lanes, second);
    for (int i = 0; i < Step::kCount; ++i) {
      const V c = V::load(cos[row + Step::row(i)] + column + Step::column(i), lanes);
      const V s = V::load(sin[row + Step::row(i)] + column + Step::column(i), lanes);
      p[i] = V::subtract(V::multiply(first[i], c), V::multiply(second[i], s));
      states[Step::vector(i)].second[row + Step::row(i)] = V::multiply_add(second[i], c, V::multiply(first[i], s));
    }
  }
};

// Form product: a part for every factor, each multiplied by the product of the preceding ones.
template <typename V, typename Block>
struct Product {
  static constexpr int kParts = 0;
  struct State {
    V product[Block::kRows];
  };

  const Block& block;

  template <typename Step, typename Lanes>
  POM_ALWAYS_INLINE void compute(int64_t part, int row, int64_t column, Lanes lanes, State* states, V* p) const {
    for (int i = 0; i < Step::kCount; ++i) {
      p[i] = V::load(block.x(part, row + Step::row(i)) + column + Step::column(i), lanes);
    }
    gelu<V, Step::kCount>(p);
    for (int i = 0; i < Step::kCount; ++i) {
      V* product = states[Step::vector(i)].product + row + Step::row(i);
      p[i] = part == 0 ? p[i] : V::multiply(p[i], *product);
      *product = p[i];
    }
  }
};

// The forms, which select a kernel's functions; In is the class above.
struct PowerForm {
  template <typename V, typename Block>
  using In = Power<V, Block>;
};
template <typename Table>
struct RotatedForm {
  template <typename V, typename Block>
  using In = RotatedPower<V, Block, Table>;
};
struct ProductForm {
  template <typename V, typename Block>
  using In = Product<V, Block>;
};

}  // namespace
}  // namespace pom::cpu
