// All functions of an instruction set.
#pragma once

#include "grouped.h"
#include "integers.h"
#include "norms.h"
#include "rounding.h"

namespace pom::cpu {
namespace {

template <typename I>
constexpr ProductKernel products_of(const char* name) {
  return {
      name, round_rows<I>, multiply<I>, multiply_groups<I>, rms_norm<I>, layer_norm<I>, elementwise<typename I::Float>};
}

}  // namespace
}  // namespace pom::cpu
