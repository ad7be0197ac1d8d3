// First phase of "mean" and "causal": one block sums one chunk of tokens.
#include "tiles.cuh"

namespace pom::cuda {
namespace {

template <typename Tile>
__device__ void sum_rows(const Tile& tile) {
  float sums[Tile::kValues] = {};
  float weight = 0.0F;
  for (int64_t base = tile.begin(); base < tile.end(); base += tile.step()) {
    const typename Tile::Rows rows = tile.read(base);
#pragma unroll
    for (int32_t r = 0; r < Tile::kRows; ++r) {
      weight += rows.weights[r];
#pragma unroll
      for (int32_t v = 0; v < Tile::kValues; ++v) {
        sums[v] += rows.features[r][v];
      }
    }
  }
#pragma unroll
  for (int32_t v = 0; v < Tile::kValues; ++v) {
    tile.total(tile.group(), v) = sums[v];
  }
  tile.total_weight(tile.group()) = weight;
}

template <typename Tile>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce) chunk_sums_kernel(const Call call) {
  const Tile tile(call, shared_memory());
  sum_rows(tile);
  __syncthreads();

  float* sums = tile.chunk_sums();
  for (auto index = static_cast<int32_t>(threadIdx.x); index < tile.tile_channels(); index += kThreads) {
    float sum = 0.0F;
    for (int32_t group = 0; group < call.plan.groups; ++group) {
      sum += tile.total_of_tile_channel(group, index);
    }
    if (const int64_t channel = tile.channel_of(index); channel >= 0) {
      sums[channel] = sum;
    }
  }
  if (threadIdx.x == 0 && tile.is_first()) {
    float weight = 0.0F;
    for (int32_t group = 0; group < call.plan.groups; ++group) {
      weight += tile.total_weight(group);
    }
    sums[call.problem.channels] = weight;
  }
}

}  // namespace

cudaError_t sum_chunks(const Call& call, cudaStream_t stream) {
  return dispatch_tile(call, [&](auto chosen) {
    return launch(chunk_sums_kernel<typename decltype(chosen)::Tile>, call, block_count(call.problem, call.plan),
                  static_cast<std::size_t>(shared_bytes(call.problem, call.plan)), stream);
  });
}

}  // namespace pom::cuda
