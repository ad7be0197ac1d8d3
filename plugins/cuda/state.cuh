// What a stateful call goes on from, and what it leaves: see pom/aggregate.h for the tensors.
#pragma once

#include "call.h"
#include "scalar.cuh"

namespace pom::cuda {

// Of a channel, a row's running sum and what rounding has lost of it.
[[nodiscard]] __device__ __forceinline__ int64_t state_index(const Call& call, int64_t batch, int64_t channel) {
  return batch * kStateRows * call.problem.channels + channel;
}

[[nodiscard]] __device__ __forceinline__ CompensatedSum read_past(const Call& call, int64_t batch, int64_t channel) {
  const float* const state = call.buffers.past_state + state_index(call, batch, channel);
  return {state[0], state[call.problem.channels]};
}

// `total`: the past and this call's sum.
__device__ __forceinline__ void write_present(const Call& call, int64_t batch, int64_t channel,
                                              const CompensatedSum& total) {
  CompensatedSum rounded{total.sum};
  rounded.add(total.error());
  float* const state = call.buffers.present_state + state_index(call, batch, channel);
  state[0] = rounded.sum;
  state[call.problem.channels] = rounded.error();
}

// The tokens of the past and of this call, which a sum of ones has counted. Integers, since a float ends to count at
// 2^24.
[[nodiscard]] __device__ __forceinline__ int64_t add_to_length(const Call& call, int64_t batch,
                                                               const CompensatedSum& count) {
  return call.buffers.past_length[batch] + static_cast<int64_t>(count.sum) + static_cast<int64_t>(count.lost);
}

}  // namespace pom::cuda
