// First phase of "mean": one block sums one chunk of tokens.
#pragma once

#include "mean.cuh"
#include "tiles.cuh"

namespace pom::cuda {

// Stores the sums of a thread's tokens as its group's totals.
template <typename Tile>
__device__ __forceinline__ void sum_steps(const Call& call, const Tile& tile) {
  float sums[Tile::kValues] = {};
  float weight = 0.0F;
  for_each_step(call, tile, [&](int32_t, const typename Tile::Rows& rows) {
#pragma unroll
    for (int32_t r = 0; r < Tile::kRows; ++r) {
      weight += rows.weights[r];
#pragma unroll
      for (int32_t v = 0; v < Tile::kValues; ++v) {
        sums[v] += rows.features[r][v];
      }
    }
  });
#pragma unroll
  for (int32_t v = 0; v < Tile::kValues; ++v) {
    tile.total(tile.group(), v) = sums[v];
  }
  tile.total_weight(tile.group()) = weight;
}

// One thread per channel of the tile passes its sum to `store`.
template <typename Tile, typename Store>
__device__ void for_each_sum(const Call& call, const Tile& tile, Store store) {
  for (auto index = static_cast<int32_t>(threadIdx.x); index < tile.tile_channels(); index += kThreads) {
    float sum = 0.0F;
    for (int32_t group = 0; group < call.plan.groups; ++group) {
      sum += tile.total_of_tile_channel(group, index);
    }
    if (const int32_t channel = tile.channel_of(index); channel >= 0) {
      store(channel, sum);
    }
  }
}

template <typename Tile>
__device__ float sum_weights(const Call& call, const Tile& tile) {
  float weight = 0.0F;
  for (int32_t group = 0; group < call.plan.groups; ++group) {
    weight += tile.total_weight(group);
  }
  return weight;
}

template <typename Tile>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce) chunk_sums_kernel(const Call call) {
  const Tile tile(call, position_by_chunk(call.plan, blockIdx.x), tile_memory());
  sum_steps(call, tile);
  __syncthreads();

  const int64_t channels = call.problem.channels;
  const Position position = tile.position();
  if (call.plan.chunks == 1) {
    const float weight = sum_weights(call, tile);
    for_each_sum(call, tile, [&](int32_t channel, float sum) {
      store_mean<typename Tile::Type>(call, position.batch, channel, {sum}, {weight});
    });
    return;
  }
  float* sums = static_cast<float*>(call.buffers.workspace) +
                (int64_t{position.batch} * call.plan.chunks + position.chunk) * (channels + 1);
  for_each_sum(call, tile, [&](int32_t channel, float sum) { sums[channel] = sum; });
  if (threadIdx.x == 0 && tile.is_first()) {
    sums[channels] = sum_weights(call, tile);
  }
}

template <typename T, int32_t Width>
cudaError_t sum_chunks(const Call& call, cudaStream_t stream) {
  return dispatch_tile<T, Width>(call, [&](auto chosen) {
    return launch(chunk_sums_kernel<typename decltype(chosen)::Tile>, call, call.plan.blocks,
                  static_cast<std::size_t>(shared_bytes(call.problem, call.plan)), stream);
  });
}

}  // namespace pom::cuda
