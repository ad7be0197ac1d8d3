// First phase of "mean" and "causal": one block sums one chunk of tokens.
#include "launch.cuh"
#include "tile.cuh"

namespace pom::cuda {
namespace {

template <typename T, int32_t Width>
__device__ void sum_rows(const Tile<T, Width>& tile) {
  float sums[Width] = {};
  float weight = 0.0F;
  for (int64_t base = tile.begin(); base < tile.end(); base += tile.step()) {
    const Rows<Width> rows = tile.read(base);
#pragma unroll
    for (int32_t r = 0; r < kRows; ++r) {
      weight += rows.weights[r];
#pragma unroll
      for (int32_t v = 0; v < Width; ++v) {
        sums[v] += rows.features[r][v];
      }
    }
  }
#pragma unroll
  for (int32_t v = 0; v < Width; ++v) {
    tile.total(tile.group(), v) = sums[v];
  }
  tile.total_weight(tile.group()) = weight;
}

template <typename T, int32_t Width>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce) chunk_sums_kernel(const Call call) {
  const Tile<T, Width> tile(call, shared_memory());
  sum_rows(tile);
  __syncthreads();

  float* sums = tile.chunk_sums();
  const int64_t channels_left = call.problem.channels - tile.first_channel();
  for (auto channel = static_cast<int32_t>(threadIdx.x); channel < tile.tile_channels(); channel += kThreads) {
    float sum = 0.0F;
    for (int32_t group = 0; group < call.plan.groups; ++group) {
      sum += tile.total_of_tile_channel(group, channel);
    }
    if (channel < channels_left) {
      sums[tile.first_channel() + channel] = sum;
    }
  }
  if (threadIdx.x == 0 && tile.first_channel() == 0) {
    float weight = 0.0F;
    for (int32_t group = 0; group < call.plan.groups; ++group) {
      weight += tile.total_weight(group);
    }
    sums[call.problem.channels] = weight;
  }
}

}  // namespace

cudaError_t sum_chunks(const Call& call, cudaStream_t stream) {
  return dispatch(call, [&](auto element) {
    using E = decltype(element);
    return launch(chunk_sums_kernel<typename E::Type, E::kWidth>, call, block_count(call.problem, call.plan),
                  shared_bytes(call.problem, call.plan), stream);
  });
}

}  // namespace pom::cuda
