// The loops that multiply averages by a gate and write them.
#pragma once

#include "gate.h"

namespace pom::cpu {
namespace {

// Rows at a time. Only one if y is written past the caches, so that its bytes are written in order: lines of several
// rows, a page apart, are too many for the processor to hold.
constexpr int kOutputRowsAtOnce = 4;

template <typename V, typename T, typename Gate, bool kStreamed, int kRows>
void write_rows(const Output& output, int64_t first) {
  for (int64_t part = 0; part < output.parts; ++part) {
    const typename Gate::template In<V, T, kRows> gate(output, first, part);
    const float* const means = output.means + first * output.means_stride + part * output.scratch_stride;
    T* const y = static_cast<T*>(output.y) + first * output.stride + part * output.part_stride;
    for_each_vector<V>(output.columns, [&](int64_t column, auto lanes) POM_ALWAYS_INLINE {
      V gates[kRows];
      gate.load(column, lanes, gates);
      for (int row = 0; row < kRows; ++row) {
        const V value = V::multiply(V::load(means + row * output.means_stride + column, AllLanes{}), gates[row]);
        write_vectors<kStreamed, 1>(y + row * output.stride + column, &value, lanes);
      }
    });
  }
}

template <typename V, typename T, typename Gate>
void write(const Output& all) {
  const Output output = all;  // a local copy, which no store can change
  int64_t row = 0;
  if constexpr (V::kStreams) {
    for (; output.streamed && row < output.count; ++row) {
      write_rows<V, T, Gate, true, 1>(output, row);
    }
    if (output.streamed) {
      V::finish_streams();
    }
  }
  for (; row + kOutputRowsAtOnce <= output.count; row += kOutputRowsAtOnce) {
    write_rows<V, T, Gate, false, kOutputRowsAtOnce>(output, row);
  }
  for (; row < output.count; ++row) {
    write_rows<V, T, Gate, false, 1>(output, row);
  }
}

template <typename V, typename T>
constexpr OutputFunctions output_functions() {
  return {
      {write<V, T, ByChannel<Identity>>, write<V, T, ByChannel<Sigmoid>>, write<V, T, ByChannel<HardSigmoid>>},
      {write<V, T, ByHead<Identity>>, write<V, T, ByHead<Sigmoid>>, write<V, T, ByHead<HardSigmoid>>},
  };
}

}  // namespace
}  // namespace pom::cpu
