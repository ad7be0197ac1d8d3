// All kernels that are compiled for each type of x.
#pragma once

#include "causal.cuh"
#include "chunk_sums.cuh"
#include "features.cuh"
#include "gate_means.cuh"
#include "kernels.h"

namespace pom::cuda {

template <typename T, int32_t Width>
constexpr Kernels kernels_of() {
  return {sum_chunks<T, Width>, gate_means<T, Width>, write_causal<T, Width>, write_features<T, Width>};
}

}  // namespace pom::cuda
