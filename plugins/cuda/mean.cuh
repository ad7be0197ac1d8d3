// Where a mean goes.
#pragma once

#include "call.h"
#include "scalar.cuh"

namespace pom::cuda {

// `weight`: that of all tokens.
template <typename T>
__device__ __forceinline__ void store_mean(const Call& call, int64_t index, float sum, float weight) {
  const float epsilon = call.problem.has_mask ? call.problem.attributes.epsilon : 0.0F;
  const float scale = mean_scale(weight, epsilon);
  const float mean = scale == 0.0F ? 0.0F : sum * scale;  // the sum may be NaN
  if (call.means != nullptr) {
    call.means[index] = mean;
  } else {
    round_to(mean, static_cast<T*>(call.buffers.output) + index);
  }
}

}  // namespace pom::cuda
