// Second and third phase of "causal": what comes before each chunk, then the running mean of every token.
#include "launch.cuh"
#include "tile.cuh"

namespace pom::cuda {
namespace {

// Replace every chunk's sum by that of all chunks before it. One thread a column of (batch, channels and weights).
__global__ void __launch_bounds__(kThreads) scan_kernel(const Call call) {
  constexpr int32_t kAhead = 8;  // chunks loaded before the first is needed
  const int64_t columns = call.problem.channels + 1;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= call.problem.batch * columns) {
    return;
  }
  const int64_t chunks = call.plan.chunks;
  float* column = static_cast<float*>(call.buffers.workspace) + index / columns * chunks * columns + index % columns;
  CompensatedSum before;
  for (int64_t first = 0; first < chunks; first += kAhead) {
    float sums[kAhead];
#pragma unroll
    for (int32_t i = 0; i < kAhead; ++i) {
      sums[i] = first + i < chunks ? column[(first + i) * columns] : 0.0F;
    }
#pragma unroll
    for (int32_t i = 0; i < kAhead; ++i) {
      if (first + i < chunks) {
        column[(first + i) * columns] = before.value();
        before.add(sums[i]);
      }
    }
  }
}

// A sum a channel, and that of the weights.
template <int32_t Width>
struct Sums {
  float features[Width] = {};
  float weight = 0.0F;
};

template <typename T, int32_t Width>
__device__ Sums<Width> sums_before_chunk(const Call& call, const Tile<T, Width>& tile) {
  Sums<Width> before;
  const float* sums = tile.chunk_sums();
  if (tile.has_channels()) {
#pragma unroll
    for (int32_t v = 0; v < Width; ++v) {
      before.features[v] = sums[tile.channel() + v];
    }
  }
  before.weight = sums[call.problem.channels];
  return before;
}

// Add the groups' totals to `carry`; returns what it was in front of this thread's group.
template <typename T, int32_t Width>
__device__ Sums<Width> pass_groups(const Call& call, const Tile<T, Width>& tile, Sums<Width>* carry) {
  Sums<Width> front = *carry;
  for (int32_t group = 0; group < call.plan.groups; ++group) {
#pragma unroll
    for (int32_t v = 0; v < Width; ++v) {
      carry->features[v] += tile.total(group, v);
    }
    carry->weight += tile.total_weight(group);
    if (group + 1 == tile.group()) {
      front = *carry;
    }
  }
  return front;
}

// Turn a thread's rows into their inclusive sums and publish the last as its group's total.
template <typename T, int32_t Width>
__device__ void accumulate(const Tile<T, Width>& tile, Rows<Width>* rows) {
#pragma unroll
  for (int32_t r = 1; r < kRows; ++r) {
#pragma unroll
    for (int32_t v = 0; v < Width; ++v) {
      rows->features[r][v] += rows->features[r - 1][v];
    }
    rows->weights[r] += rows->weights[r - 1];
  }
#pragma unroll
  for (int32_t v = 0; v < Width; ++v) {
    tile.total(tile.group(), v) = rows->features[kRows - 1][v];
  }
  tile.total_weight(tile.group()) = rows->weights[kRows - 1];
}

template <typename T, int32_t Width>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce) causal_kernel(const Call call) {
  const Tile<T, Width> tile(call, shared_memory());
  const Sums<Width> before = sums_before_chunk(call, tile);
  const float epsilon = call.problem.has_mask ? call.problem.attributes.epsilon : 0.0F;
  Sums<Width> carry;  // of this chunk alone, so that it stays short
  for (int64_t base = tile.begin(); base < tile.end(); base += tile.step()) {
    Rows<Width> rows = tile.read(base);
    accumulate(tile, &rows);
    __syncthreads();
    const Sums<Width> front = pass_groups(call, tile, &carry);
#pragma unroll
    for (int32_t r = 0; r < kRows; ++r) {
      const float weight = before.weight + (front.weight + rows.weights[r]);
      float means[Width];
#pragma unroll
      for (int32_t v = 0; v < Width; ++v) {
        means[v] = weighted_mean(before.features[v] + (front.features[v] + rows.features[r][v]), weight, epsilon);
      }
      tile.write(tile.first_token(base) + r, means);
    }
    __syncthreads();  // the totals have been read
  }
}

}  // namespace

cudaError_t finish_causal(const Call& call, cudaStream_t stream) {
  const int64_t columns = call.problem.batch * (call.problem.channels + 1);
  const cudaError_t status = launch(scan_kernel, call, (columns + kThreads - 1) / kThreads, 0, stream);
  if (status != cudaSuccess) {
    return status;
  }
  return dispatch(call, [&](auto element) {
    using E = decltype(element);
    return launch(causal_kernel<typename E::Type, E::kWidth>, call, block_count(call.problem, call.plan),
                  shared_bytes(call.problem, call.plan), stream);
  });
}

}  // namespace pom::cuda
