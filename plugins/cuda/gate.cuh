// The gate for a pack of channels.
#pragma once

#include <cmath>

#include "call.h"
#include "pack.cuh"

namespace pom::cuda {

[[nodiscard]] __device__ __forceinline__ bool is_one_a_channel(const Call& call) {
  return call.gate.gates == call.problem.channels;
}

// The index of a channel's gate.
[[nodiscard]] __device__ __forceinline__ int64_t gate_of(const Call& call, int64_t channel) {
  return is_one_a_channel(call) ? channel : channel / (call.problem.channels / call.gate.gates);
}

template <typename T>
[[nodiscard]] __device__ __forceinline__ float read_bias(const Call& call, int64_t channel) {
  return read_as_float<T>(call.buffers.gate_bias, call.gate.bias_type, gate_of(call, channel));
}

// The gates for a pack of channels: adjacent ones if there is one per channel, else one for the whole pack. `row`
// counts the tokens of the whole batch.
template <typename T, int32_t Width>
[[nodiscard]] __device__ __forceinline__ Pack<T, Width> load_gates(const Call& call, int64_t row, int64_t channel) {
  const DataType type = call.problem.data_type;
  if (is_one_a_channel(call)) {
    // Written like the index of x and the output, so that nvcc only computes it once.
    return read_packed<T, Width>(call.buffers.gate, type, (row * call.problem.channels + channel) / Width);
  }
  const T gate = read_value<T>(call.buffers.gate, type, row * call.gate.gates + gate_of(call, channel));
  Pack<T, Width> pack;
  fill(gate, &pack);
  return pack;
}

__device__ __forceinline__ float hard_sigmoid(float value) {
  return smaller(larger(value * (1.0F / 6.0F) + 0.5F, 0.0F), 1.0F);
}

// values *= activation(sums)
template <int32_t Width>
__device__ __forceinline__ void apply_gate(GateActivation activation, const float (&sums)[Width],
                                           float (&values)[Width]) {
  const auto multiply = [&](auto activate_gate) {
#pragma unroll
    for (int32_t v = 0; v < Width; ++v) {
      values[v] *= activate_gate(sums[v]);
    }
  };
  switch (activation) {
    case GateActivation::kIdentity:
      return multiply([](float value) { return value; });
    case GateActivation::kSigmoid:
      return multiply([](float value) { return reciprocal(1.0F + expf(-value)); });
    case GateActivation::kHardSigmoid:
      return multiply([](float value) { return hard_sigmoid(value); });
  }
}

}  // namespace pom::cuda
