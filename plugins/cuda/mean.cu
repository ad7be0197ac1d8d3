// Second phase of "mean": the sums of all chunks, in a fixed order, over the sum of weights.
#include "launch.cuh"
#include "scalar.cuh"

namespace pom::cuda {
namespace {

constexpr int32_t kGroups = kThreads / kMaxLanes;

struct GroupTotals {
  float sums[kGroups][kMaxLanes];
  float weights[kGroups][kMaxLanes];
};

template <typename T>
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
  for (int64_t chunk = group; channel < channels && chunk < call.plan.chunks; chunk += kGroups) {
    sum.add(rows[chunk * (channels + 1) + channel]);
    weight.add(rows[chunk * (channels + 1) + channels]);
  }
  totals.sums[group][lane] = sum.value();
  totals.weights[group][lane] = weight.value();
  __syncthreads();

  if (group > 0 || channel >= channels) {
    return;
  }
  float total = 0.0F;
  float total_weight = 0.0F;
  for (int32_t g = 0; g < kGroups; ++g) {
    total += totals.sums[g][lane];
    total_weight += totals.weights[g][lane];
  }
  const float epsilon = call.problem.has_mask ? call.problem.attributes.epsilon : 0.0F;
  const float mean = weighted_mean(total, total_weight, epsilon);
  if (call.means != nullptr) {
    call.means[batch * channels + channel] = mean;
  } else {
    round_to(mean, static_cast<T*>(call.buffers.output) + batch * channels + channel);
  }
}

}  // namespace

cudaError_t finish_mean(const Call& call, cudaStream_t stream) {
  const int64_t blocks = call.problem.batch * ((call.problem.channels + kMaxLanes - 1) / kMaxLanes);
  return dispatch(call, [&](auto element) {
    return launch(mean_kernel<typename decltype(element)::Type>, call, blocks, sizeof(GroupTotals), stream);
  });
}

}  // namespace pom::cuda
