// Second phase of "mean": adds the sums of all chunks in a fixed order, and divides by the sum of weights.
#include "launch.cuh"
#include "mean.cuh"

namespace pom::cuda {
namespace {

constexpr int32_t kGroups = kThreads / kMaxLanes;
constexpr int32_t kAtOnce = 8;  // chunks whose sums a thread loads before it needs the first

struct GroupTotals {
  CompensatedSum sums[kGroups][kMaxLanes];
  CompensatedSum weights[kGroups][kMaxLanes];
};

__global__ void __launch_bounds__(kThreads) mean_kernel(const Call call) {
  auto& totals = *reinterpret_cast<GroupTotals*>(shared_memory());
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % kMaxLanes;
  const int32_t group = static_cast<int32_t>(threadIdx.x) / kMaxLanes;
  const int64_t channels = call.problem.channels;
  const int64_t tiles = (channels + kMaxLanes - 1) / kMaxLanes;
  const int64_t batch = blockIdx.x / tiles;
  const int64_t channel = blockIdx.x % tiles * kMaxLanes + lane;

  CompensatedSum sum;
  CompensatedSum weight;
  const float* rows = static_cast<const float*>(call.buffers.workspace) + batch * call.plan.chunks * (channels + 1);
  const int32_t chunks = channel < channels ? call.plan.chunks : 0;
  for (int32_t first = group; first < chunks; first += kGroups * kAtOnce) {
    float sums[kAtOnce];
    float weights[kAtOnce];
#pragma unroll
    for (int32_t i = 0; i < kAtOnce; ++i) {
      const int32_t chunk = first + i * kGroups;
      sums[i] = chunk < chunks ? rows[chunk * (channels + 1) + channel] : 0.0F;
      weights[i] = chunk < chunks ? rows[chunk * (channels + 1) + channels] : 0.0F;
    }
#pragma unroll
    for (int32_t i = 0; i < kAtOnce; ++i) {
      sum.add(sums[i]);
      weight.add(weights[i]);
    }
  }
  totals.sums[group][lane] = sum;
  totals.weights[group][lane] = weight;
  __syncthreads();

  if (group > 0 || channel >= channels) {
    return;
  }
  for (int32_t g = 1; g < kGroups; ++g) {
    sum.add(totals.sums[g][lane]);
    weight.add(totals.weights[g][lane]);
  }
  store_mean<AnyValue>(call, batch, channel, sum, weight);
}

}  // namespace

cudaError_t write_means(const Call& call, cudaStream_t stream) {
  const int64_t blocks = call.problem.batch * ceil_div(call.problem.channels, kMaxLanes);
  return launch(mean_kernel, call, blocks, sizeof(GroupTotals), stream);
}

}  // namespace pom::cuda
