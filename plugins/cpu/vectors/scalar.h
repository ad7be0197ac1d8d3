// One lane, in plain C++. Not for the files compiled with instruction-set flags (see kernel.h).
#pragma once

#include "../block.h"
#include "../half.h"

namespace pom::cpu {
namespace {

struct Scalar {
  static constexpr int kWidth = 1;
  static constexpr bool kFused = false;
  static constexpr bool kStreams = false;
  float value;

  static Scalar load(const float* from, AllLanes) { return {*from}; }
  static Scalar load(const Half* from, AllLanes) { return {to_float(*from)}; }
  static Scalar load(const BFloat16* from, AllLanes) { return {to_float(*from)}; }
  static void store(float* to, Scalar a, AllLanes) { *to = a.value; }
  static void store(Half* to, Scalar a, AllLanes) { *to = to_half(a.value); }
  static void store(BFloat16* to, Scalar a, AllLanes) { *to = to_bfloat16(a.value); }

  static Scalar broadcast(float value) { return {value}; }
  static Scalar add(Scalar a, Scalar b) { return {a.value + b.value}; }
  static Scalar subtract(Scalar a, Scalar b) { return {a.value - b.value}; }
  static Scalar multiply(Scalar a, Scalar b) { return {a.value * b.value}; }
  static Scalar divide(Scalar a, Scalar b) { return {a.value / b.value}; }
  static Scalar multiply_add(Scalar a, Scalar b, Scalar c) { return {a.value * b.value + c.value}; }
  static Scalar at_least(Scalar a, Scalar bound) { return a.value < bound.value ? bound : a; }
  static Scalar at_most(Scalar a, Scalar bound) { return a.value > bound.value ? bound : a; }
  static Scalar multiply_exp2(Scalar a, Scalar biased) {
    return {float_from_bits(float_bits(a.value) + (float_bits(biased.value) << 23))};
  }
};

}  // namespace
}  // namespace pom::cpu
