// Mode "features": the polynomial of every token, without aggregation.
#include "launch.cuh"
#include "tile.cuh"

namespace pom::cuda {
namespace {

template <typename T, int32_t Width>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce) features_kernel(const Call call) {
  const Tile<T, Width> tile(call, shared_memory());
  for (int64_t base = tile.begin(); base < tile.end(); base += tile.step()) {
    const Rows<Width> rows = tile.read(base);
#pragma unroll
    for (int32_t r = 0; r < kRows; ++r) {
      tile.write(tile.first_token(base) + r, rows.features[r]);
    }
  }
}

}  // namespace

cudaError_t write_features(const Call& call, cudaStream_t stream) {
  return dispatch(call, [&](auto element) {
    using E = decltype(element);
    return launch(features_kernel<typename E::Type, E::kWidth>, call, block_count(call.problem, call.plan),
                  shared_bytes(call.problem, call.plan), stream);
  });
}

}  // namespace pom::cuda
