// The past and the present of a stateful call; see pom/aggregate.h for the tensors.
#pragma once

#include <limits>

#include "call.h"
#include "scalar.cuh"

namespace pom::cuda {

constexpr int64_t kLongest = std::numeric_limits<int64_t>::max();

// The position of a channel's running sum; what it has lost to rounding is one row further.
[[nodiscard]] __device__ __forceinline__ int64_t state_index(const Call& call, int64_t batch, int64_t channel) {
  return batch * kStateRows * call.problem.channels + channel;
}

// False for an invalid length, or one to which the call's tokens cannot be added. A kernel cannot refuse a call: it
// then writes NaN everywhere in the row and a negative length, so that no later call mistakes it for a number of
// tokens.
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

// `total` is the sum of the past and of this call.
__device__ __forceinline__ void write_present(const Call& call, int64_t batch, int64_t channel,
                                              const CompensatedSum& total) {
  CompensatedSum rounded{total.sum};
  rounded.add(total.error());
  float* const state = call.buffers.present_state + state_index(call, batch, channel);
  state[0] = rounded.sum;
  state[call.problem.channels] = rounded.error();
}

// The tokens of the past and of this call, counted as a sum of ones; -1 if the past's length is invalid. As integers,
// since a float cannot count beyond 2^24.
[[nodiscard]] __device__ __forceinline__ int64_t add_to_length(const Call& call, int64_t batch,
                                                               const CompensatedSum& count) {
  const int64_t past = call.buffers.past_length[batch];
  return is_length(call, past) ? past + static_cast<int64_t>(count.sum) + static_cast<int64_t>(count.lost) : -1;
}

// A length as the weight by which a mean is divided.
[[nodiscard]] __device__ __forceinline__ float weight_of(int64_t length) {
  return length < 0 ? not_a_number() : static_cast<float>(length);
}

}  // namespace pom::cuda
