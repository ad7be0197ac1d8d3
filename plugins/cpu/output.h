// The loops that write averages with a gate over them.
#pragma once

#include "gate.h"

namespace pom::cpu {
namespace {

// Rows at a time. Past the caches one, whose bytes are then written in order: lines of several rows, a page apart, are
// too many for the processor to hold.
template <bool kStreamed>
constexpr int kOutputRowsAtOnce = kStreamed ? 1 : 4;

// The averages of rows from `first` on, in one part.

// The same one for every row.
template <typename V>
class OneMean {
 public:
  POM_ALWAYS_INLINE OneMean(const Output& output, int64_t, int64_t part)
      : mean_(output.means + part * output.scratch_stride) {}

  POM_ALWAYS_INLINE V load(int, int64_t column) const { return V::load(mean_ + column, AllLanes{}); }

 private:
  const float* const mean_;
};

template <typename V>
class OwnMeans {
 public:
  POM_ALWAYS_INLINE OwnMeans(const Output& output, int64_t first, int64_t part)
      : stride_(output.parts * output.scratch_stride),
        means_(output.means + first * stride_ + part * output.scratch_stride) {}

  POM_ALWAYS_INLINE V load(int row, int64_t column) const {
    return V::load(means_ + row * stride_ + column, AllLanes{});
  }

 private:
  const int64_t stride_;
  const float* const means_;
};

template <typename V, typename T, template <typename> class Mean, typename Gate, bool kStreamed>
void write_rows(const Output& output) {
  for_each_block<kOutputRowsAtOnce<kStreamed>>(output.count, [&](int64_t first, auto size) POM_ALWAYS_INLINE {
    constexpr int kRows = decltype(size)::value;
    for (int64_t part = 0; part < output.parts; ++part) {
      const Mean<V> mean(output, first, part);
      const typename Gate::template In<V, T, kRows> gate(output, first, part);
      T* const y = static_cast<T*>(output.y) + first * output.stride + part * output.part_stride;
      for_each_vector<V>(output.columns, [&](int64_t column, auto lanes) POM_ALWAYS_INLINE {
        V gates[kRows];
        gate.load(column, lanes, gates);
        for (int row = 0; row < kRows; ++row) {
          const V value = V::multiply(mean.load(row, column), gates[row]);
          write_vectors<kStreamed, 1>(y + row * output.stride + column, &value, lanes);
        }
      });
    }
  });
}

template <typename V, typename T, template <typename> class Mean, typename Gate>
void write(const Output& output) {
  if (output.streamed) {
    write_rows<V, T, Mean, Gate, true>(output);
    V::finish_streams();
  } else {
    write_rows<V, T, Mean, Gate, false>(output);
  }
}

template <typename V, typename T, template <typename> class Mean>
constexpr GatedFunctions gated_functions() {
  return {{write<V, T, Mean, ByChannel<Identity>>, write<V, T, Mean, ByChannel<Sigmoid>>,
           write<V, T, Mean, ByChannel<HardSigmoid>>},
          {write<V, T, Mean, ByHead<Identity>>, write<V, T, Mean, ByHead<Sigmoid>>,
           write<V, T, Mean, ByHead<HardSigmoid>>}};
}

template <typename V, typename T>
constexpr OutputFunctions output_functions() {
  return {gated_functions<V, T, OwnMeans>(), gated_functions<V, T, OneMean>()};
}

}  // namespace
}  // namespace pom::cpu
