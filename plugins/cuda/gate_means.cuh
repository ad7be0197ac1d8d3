// Last phase of "mean" with a gate: a row's mean is used for all of the gate's tokens.
#pragma once

#include "gate.cuh"
#include "launch.cuh"

namespace pom::cuda {

inline constexpr int32_t kGatedRows = kLoads;  // tokens per thread, all loaded at once

// A block has one chunk with one step, see plan.h. Its tokens are distributed to the groups in turn, so that a warp
// with few lanes still reads contiguous memory.
template <typename T, int32_t Width>
__global__ void __launch_bounds__(kThreads) gate_means_kernel(const Call call) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % call.plan.lanes;
  const int32_t group = static_cast<int32_t>(threadIdx.x) / call.plan.lanes;
  const auto column_tiles = static_cast<uint32_t>(call.plan.column_tiles);
  const auto chunks = static_cast<uint32_t>(call.plan.chunks);
  const uint32_t row_tile = blockIdx.x / column_tiles;
  const int64_t batch = row_tile / chunks;
  const int64_t first_token = int64_t{row_tile % chunks} * call.plan.chunk_tokens + group;
  const int64_t channels = call.problem.channels;
  const int64_t channel = (int64_t{blockIdx.x % column_tiles} * call.plan.lanes + lane) * Width;
  if (channel >= channels) {
    return;
  }
  Pack<T, Width> gates[kGatedRows] = {};
#pragma unroll
  for (int32_t r = 0; r < kGatedRows; ++r) {
    const int64_t token = first_token + r * call.plan.groups;
    if (token < call.gate.tokens) {
      gates[r] = load_gates<T, Width>(call, batch * call.gate.tokens + token, channel);
    }
  }
  float bias[Width];
  float means[Width];
#pragma unroll
  for (int32_t v = 0; v < Width; ++v) {  // only a few bytes, from a cache
    bias[v] = read_bias<T>(call, channel + v);
  }
  read_pack<T>(call.means, DataType::kFloat32, batch * channels + channel, means);
#pragma unroll
  for (int32_t r = 0; r < kGatedRows; ++r) {
    const int64_t token = first_token + r * call.plan.groups;
    if (token < call.gate.tokens) {
      float sums[Width];
      float gated[Width];
      unpack(gates[r], call.problem.data_type, sums);
#pragma unroll
      for (int32_t v = 0; v < Width; ++v) {
        sums[v] += bias[v];
        gated[v] = means[v];
      }
      apply_gate(call.gate.activation, sums, gated);
      const int64_t index = (batch * call.gate.tokens + token) * channels + channel;
      write_packed<T, Width>(gated, call.buffers.output, call.problem.data_type, index / Width);
    }
  }
}

// Many small blocks: each has little to set up, and the last ones leave no multiprocessor idle for long.
inline Plan plan_steps(const Call& call) {
  Plan plan = call.plan;
  plan.column_tiles = static_cast<int32_t>(ceil_div(call.problem.channels, int64_t{plan.lanes} * plan.width));
  plan.chunk_tokens = plan.groups * kGatedRows;
  plan.chunks = static_cast<int32_t>(ceil_div(call.gate.tokens, plan.chunk_tokens));
  plan.blocks = call.problem.batch * plan.chunks * plan.column_tiles;
  return plan;
}

template <typename T, int32_t Width>
cudaError_t gate_means(const Call& call, cudaStream_t stream) {
  Call steps = call;
  steps.plan = plan_steps(call);
  return launch(gate_means_kernel<T, Width>, steps, steps.plan.blocks, 0, stream);
}

}  // namespace pom::cuda
