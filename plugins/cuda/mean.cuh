// Adds the state to a mean, and writes the mean.
#pragma once

#include "call.h"
#include "state.cuh"

namespace pom::cuda {

// `weight` is the total weight of all tokens.
template <typename T>
__device__ __forceinline__ void store_mean(const Call& call, int64_t batch, int64_t channel, CompensatedSum sum,
                                           CompensatedSum weight) {
  if (call.problem.attributes.stateful) {
    const int64_t length = add_to_length(call, batch, weight);
    sum.add(read_past(call, batch, channel));
    write_present(call, batch, channel, sum);
    if (channel == 0) {
      call.buffers.present_length[batch] = length;
    }
    weight = {weight_of(length)};
  }
  const float scale = mean_scale(weight.value(), call.plan.epsilon);
  const float mean = scale == 0.0F ? none(weight.value()) : sum.value() * scale;
  const int64_t index = batch * call.problem.channels + channel;
  if (call.means != nullptr) {
    call.means[index] = mean;
  } else {
    write_value<T>(mean, call.buffers.output, call.problem.data_type, index);
  }
}

}  // namespace pom::cuda
