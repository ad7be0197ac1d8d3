// Mode "features": the features of every token, without aggregation.
#pragma once

#include "tiles.cuh"

namespace pom::cuda {

template <typename Tile>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce) features_kernel(const Call call) {
  const Tile tile(call, position_by_chunk(call.plan, blockIdx.x), tile_memory());
  for_each_step(call, tile, [&](int32_t base, const typename Tile::Rows& rows) {
#pragma unroll
    for (int32_t r = 0; r < Tile::kRows; ++r) {
#pragma unroll
      for (int32_t p = 0; p < Tile::kPacks; ++p) {
        tile.write(tile.first_token(base) + r, p, rows.features[r] + p * Tile::kWidth);
      }
    }
  });
}

template <typename T, int32_t Width>
cudaError_t write_features(const Call& call, cudaStream_t stream) {
  return dispatch_tile<T, Width>(call, [&](auto chosen) {
    return launch(features_kernel<typename decltype(chosen)::Tile>, call, call.plan.blocks,
                  static_cast<std::size_t>(shared_bytes(call.problem, call.plan)), stream);
  });
}

}  // namespace pom::cuda
