// All functions of an instruction set, instantiated for its vector type.
#pragma once

#include "loops.h"
#include "output.h"

namespace pom::cpu {
namespace {

template <typename V, typename T>
constexpr TypeFunctions type_functions() {
  return {features_functions<V, T>(), output_functions<V, T>()};
}

template <typename V>
constexpr Kernel kernel_of(const char* name) {
  return {name, type_functions<V, float>(), type_functions<V, Half>(), type_functions<V, BFloat16>()};
}

}  // namespace
}  // namespace pom::cpu
