// What follows a sum: bias, activation, factor and addition.
#pragma once

#include "../gate.h"
#include "../gelu.h"
#include "products.h"

namespace pom::cpu {
namespace {

// Each activation is applied to one vector. NaNs are preserved.
template <typename V>
POM_ALWAYS_INLINE inline V activated(V x, Activation activation) {
  switch (activation) {
    case Activation::kGelu:
      gelu<V, 1>(&x);
      return x;
    case Activation::kRelu:
      return V::at_least(x, V::broadcast(0.0F));
    case Activation::kSilu: {
      V share = x;
      Sigmoid::apply<V, 1>(&share);
      return V::multiply(x, share);
    }
    case Activation::kNone:
      break;
  }
  return x;
}

// One row of y from sums, (columns). Pointers are to the row's first column; bias and added may be null.
template <typename V>
void finish_row(const float* sums, int64_t columns, const float* bias, Activation activation, float factor,
                const float* added, float* y) {
  for_each_vector<V>(columns, [&](int64_t column, auto lanes) POM_ALWAYS_INLINE {
    V value = V::load(sums + column, lanes);
    if (bias != nullptr) {
      value = V::add(value, V::load(bias + column, lanes));
    }
    value = V::multiply(activated(value, activation), V::broadcast(factor));
    if (added != nullptr) {
      value = V::add(value, V::load(added + column, lanes));
    }
    V::store(y + column, value, lanes);
  });
}

// Rows [first_row, first_row + rows) of y from sums, (rows, sums_stride), in `columns` columns from `column` on.
template <typename V>
void finish_rows(const Epilogue& epilogue, const float* sums, int64_t sums_stride, int64_t first_row, int64_t rows,
                 int64_t column, int64_t columns, float* y, int64_t y_stride) {
  const float* bias = epilogue.bias == nullptr ? nullptr : epilogue.bias + column;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = first_row + row;
    const float* added = epilogue.added == nullptr ? nullptr : epilogue.added + at * epilogue.added_stride + column;
    finish_row<V>(sums + row * sums_stride, columns, bias, epilogue.activation, epilogue.factor, added,
                  y + at * y_stride + column);
  }
}

template <typename V>
void elementwise(const float* x, const float* added, const float* multiplied, int64_t count, Activation activation,
                 float factor, float* y) {
  for_each_vector<V>(count, [&](int64_t i, auto lanes) POM_ALWAYS_INLINE {
    V value = activated(V::load(x + i, lanes), activation);
    if (multiplied != nullptr) {
      value = V::multiply(value, V::load(multiplied + i, lanes));
    }
    value = V::multiply(value, V::broadcast(factor));
    if (added != nullptr) {
      value = V::add(value, V::load(added + i, lanes));
    }
    V::store(y + i, value, lanes);
  });
}

}  // namespace
}  // namespace pom::cpu
