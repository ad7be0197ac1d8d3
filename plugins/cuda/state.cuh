// What a stateful call goes on from, and what it leaves: see pom/aggregate.h for the tensors.
#pragma once

#include <limits>

#include "call.h"
#include "scalar.cuh"

namespace pom::cuda {

constexpr int64_t kLongest = std::numeric_limits<int64_t>::max();

// Of a channel, a row's running sum and what rounding has lost of it.
[[nodiscard]] __device__ __forceinline__ int64_t state_index(const Call& call, int64_t batch, int64_t channel) {
  return batch * kStateRows * call.problem.channels + channel;
}

// False for a length that is none, or to which the call's tokens cannot be added. A kernel cannot refuse: all of the
// row that it writes is then NaN, and the length negative, so that no later call takes it for a number of tokens.
[[nodiscard]] __device__ __forceinline__ bool is_length(const Call& call, int64_t length) {
  return length >= 0 && length <= kLongest - call.problem.tokens;
}

[[nodiscard]] __device__ __forceinline__ CompensatedSum read_past(const Call& call, int64_t batch, int64_t channel) {
  if (!is_length(call, call.buffers.past_length[batch])) {
    return {not_a_number()};
  }
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

// The tokens of the past and of this call, which a sum of ones has counted; -1 where there are none of the past's.
// Integers, since a float ends to count at 2^24.
[[nodiscard]] __device__ __forceinline__ int64_t add_to_length(const Call& call, int64_t batch,
                                                               const CompensatedSum& count) {
  const int64_t past = call.buffers.past_length[batch];
  return is_length(call, past) ? past + static_cast<int64_t>(count.sum) + static_cast<int64_t>(count.lost) : -1;
}

// A length as the weight that a mean is divided by.
[[nodiscard]] __device__ __forceinline__ float weight_of(int64_t length) {
  return length < 0 ? not_a_number() : static_cast<float>(length);
}

}  // namespace pom::cuda
