// The gate that multiplies an average: its activations, and how the gates of a few rows are read.
#pragma once

#include "exp2.h"
#include "iterate.h"

namespace pom::cpu {
namespace {

// Each activation is applied to kCount vectors. NaNs are preserved.

struct Identity {
  template <typename V, int kCount>
  POM_ALWAYS_INLINE static void apply(V*) {}
};

struct HardSigmoid {
  template <typename V, int kCount>
  POM_ALWAYS_INLINE static void apply(V* z) {
    for (int i = 0; i < kCount; ++i) {
      const V line = V::multiply_add(z[i], V::broadcast(1.0F / 6.0F), V::broadcast(0.5F));
      z[i] = V::at_most(V::at_least(line, V::broadcast(0.0F)), V::broadcast(1.0F));
    }
  }
};

// 1 / (1 + exp(-z)).
struct Sigmoid {
  template <typename V, int kCount>
  POM_ALWAYS_INLINE static void apply(V* z) {
    // Beyond this, 2^n is not a normal number, so the sigmoid stays at its value here, 1e-38.
    constexpr float kLimit = 87.0F;
    constexpr float kLog2E = 1.44269504F;
    // ln 2 as the sum of two numbers; the first has so few digits that its product with n is exact.
    constexpr float kLn2 = 0.693359375F;
    constexpr float kLn2Rest = -2.12194440e-4F;
    V biased[kCount];
    V fraction[kCount];
    V power[kCount];
    for (int i = 0; i < kCount; ++i) {
      z[i] = V::at_most(V::at_least(z[i], V::broadcast(-kLimit)), V::broadcast(kLimit));
      biased[i] = biased_integer(V::multiply(z[i], V::broadcast(-kLog2E)));
      const V n = V::subtract(biased[i], V::broadcast(kRoundingBias));
      // n ln 2 + z, which is the negated remainder of -z.
      const V turned = V::multiply_add(n, V::broadcast(kLn2Rest), V::multiply_add(n, V::broadcast(kLn2), z[i]));
      fraction[i] = V::multiply(turned, V::broadcast(-kLog2E));
    }
    exp2<V, kCount>(biased, fraction, power);
    for (int i = 0; i < kCount; ++i) {
      const V one = V::broadcast(1.0F);
      // The last term only preserves a NaN, which the power may have lost.
      z[i] = V::multiply_add(z[i], V::broadcast(0.0F), V::divide(one, V::add(one, power[i])));
    }
  }
};

// The activated gates of kRows rows from `first` on, in one part, for a vector of columns.

template <typename Activation>
struct ByChannel {
  template <typename V, typename T, int kRows>
  class In {
   public:
    POM_ALWAYS_INLINE In(const Output& output, int64_t first, int64_t part)
        : gate_(static_cast<const T*>(output.gate) + first * output.gate_stride + start(output, part)),
          bias_(output.gate_bias + start(output, part)),
          stride_(output.gate_stride) {}

    template <typename Lanes>
    POM_ALWAYS_INLINE void load(int64_t column, Lanes lanes, V* gates) const {
      const V bias = V::load(bias_ + column, lanes);
      for (int row = 0; row < kRows; ++row) {
        gates[row] = V::add(V::load(gate_ + row * stride_ + column, lanes), bias);
      }
      Activation::template apply<V, kRows>(gates);
    }

   private:
    POM_ALWAYS_INLINE static int64_t start(const Output& output, int64_t part) {
      return output.channel + part * output.part_stride;
    }
    const T* const gate_;
    const float* const bias_;
    const int64_t stride_;
  };
};

template <typename Activation>
struct ByHead {
  // The gates of a row's heads are activated first, then repeated.
  template <typename V, typename T, int kRows>
  class In {
   public:
    POM_ALWAYS_INLINE In(const Output& output, int64_t first, int64_t part) {
      const int64_t channel = output.channel + part * output.part_stride;
      const int64_t head = channel / output.head_width;
      const int64_t heads = (channel + output.columns - 1) / output.head_width + 1 - head;
      float activated[kMaxBlockColumns + kPadding];
      for (int row = 0; row < kRows; ++row) {
        const T* gate = static_cast<const T*>(output.gate) + (first + row) * output.gate_stride + head;
        for_each_vector<V>(heads, [&](int64_t i, auto lanes) POM_ALWAYS_INLINE {
          V value = V::add(V::load(gate + i, lanes), V::load(output.gate_bias + head + i, lanes));
          Activation::template apply<V, 1>(&value);
          V::store(activated + i, value, AllLanes{});
        });
        repeat(activated, (head + 1) * output.head_width - channel, output, gates_[row]);
      }
    }

    template <typename Lanes>
    POM_ALWAYS_INLINE void load(int64_t column, Lanes, V* gates) const {
      for (int row = 0; row < kRows; ++row) {
        gates[row] = V::load(gates_[row] + column, AllLanes{});
      }
    }

   private:
    // The first head ends at column `end`. Values written beyond a head's end are overwritten by the next head.
    POM_ALWAYS_INLINE static void repeat(const float* head, int64_t end, const Output& output, float* gates) {
      for (int64_t column = 0; column < output.columns; end += output.head_width, ++head) {
        const int64_t stop = end < output.columns ? end : output.columns;
        for (int64_t i = column; i < stop; i += V::kWidth) {
          V::store(gates + i, V::broadcast(*head), AllLanes{});
        }
        column = stop;
      }
    }

    float gates_[kRows][kMaxBlockColumns + kPadding];
  };
};

}  // namespace
}  // namespace pom::cpu
