// The loops that write an average, with or without a gate over it.
#pragma once

#include "gate.h"

namespace pom::cpu {
namespace {

constexpr int kOutputRowsAtOnce = 4;

// The averages of kRows rows from `first` on, in one part.

// The same one for every row.
template <typename V, int kRows>
class OneMean {
 public:
  POM_ALWAYS_INLINE OneMean(const Output& output, int64_t, int64_t part)
      : mean_(output.mean + part * output.scratch_stride) {}

  POM_ALWAYS_INLINE void load(int64_t column, V* values) const {
    const V mean = V::load(mean_ + column, AllLanes{});
    for (int row = 0; row < kRows; ++row) {
      values[row] = mean;
    }
  }

 private:
  const float* const mean_;
};

template <typename V, int kRows>
class PrefixMean {
 public:
  POM_ALWAYS_INLINE PrefixMean(const Output& output, int64_t first, int64_t part)
      : sum_(output.sum + part * output.scratch_stride),
        rest_(output.rest + part * output.scratch_stride),
        stride_(output.parts * output.prefix_stride),
        prefix_(output.prefix + first * stride_ + part * output.prefix_stride),
        scales_(output.scales + first) {}

  POM_ALWAYS_INLINE void load(int64_t column, V* values) const {
    const V before = V::add(V::load(sum_ + column, AllLanes{}), V::load(rest_ + column, AllLanes{}));
    for (int row = 0; row < kRows; ++row) {
      const V so_far = V::add(before, V::load(prefix_ + row * stride_ + column, AllLanes{}));
      // Not sum * 0 where the weights sum to 0: the sum may be NaN.
      values[row] = scales_[row] == 0.0F ? V::broadcast(0.0F) : V::multiply(so_far, V::broadcast(scales_[row]));
    }
  }

 private:
  const float* const sum_;
  const float* const rest_;
  const int64_t stride_;
  const float* const prefix_;
  const float* const scales_;
};

template <bool kStreamed, typename V, typename T>
POM_ALWAYS_INLINE inline void write_vector(T* to, V value, AllLanes lanes) {
  if constexpr (kStreamed) {
    V::stream(to, value);
  } else {
    V::store(to, value, lanes);
  }
}

template <bool kStreamed, typename V, typename T>
POM_ALWAYS_INLINE inline void write_vector(T* to, V value, FirstLanes lanes) {
  V::store(to, value, lanes);
}

template <typename V, typename T, template <typename, int> class Mean, typename Gate, bool kStreamed>
void write_rows(const Output& output) {
  for_each_block<kOutputRowsAtOnce>(output.count, [&](int64_t first, auto size) POM_ALWAYS_INLINE {
    constexpr int kRows = decltype(size)::value;
    for (int64_t part = 0; part < output.parts; ++part) {
      const Mean<V, kRows> mean(output, first, part);
      const typename Gate::template In<V, T, kRows> gate(output, first, part);
      T* const y = static_cast<T*>(output.y) + first * output.stride + part * output.part_stride;
      for_each_vector<V>(output.columns, [&](int64_t column, auto lanes) POM_ALWAYS_INLINE {
        V values[kRows];
        V gates[kRows];
        mean.load(column, values);
        gate.load(column, lanes, gates);
        for (int row = 0; row < kRows; ++row) {
          if constexpr (Gate::kGated) {
            values[row] = V::multiply(values[row], gates[row]);
          }
          write_vector<kStreamed>(y + row * output.stride + column, values[row], lanes);
        }
      });
    }
  });
}

template <typename V, typename T, template <typename, int> class Mean, typename Gate>
void write(const Output& output) {
  if (output.streamed) {
    write_rows<V, T, Mean, Gate, true>(output);
    V::finish_streams();
  } else {
    write_rows<V, T, Mean, Gate, false>(output);
  }
}

template <typename V, typename T, template <typename, int> class Mean>
constexpr GatedFunctions gated_functions() {
  return {{write<V, T, Mean, ByChannel<Identity>>, write<V, T, Mean, ByChannel<Sigmoid>>,
           write<V, T, Mean, ByChannel<HardSigmoid>>},
          {write<V, T, Mean, ByHead<Identity>>, write<V, T, Mean, ByHead<Sigmoid>>,
           write<V, T, Mean, ByHead<HardSigmoid>>}};
}

template <typename V, typename T>
constexpr OutputFunctions output_functions() {
  return {write<V, T, PrefixMean, NoGate>, gated_functions<V, T, PrefixMean>(), gated_functions<V, T, OneMean>()};
}

}  // namespace
}  // namespace pom::cpu
