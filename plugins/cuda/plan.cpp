#include "plan.h"

#include <algorithm>

#include "aggregate_cuda.h"

namespace pom::cuda {
namespace {

// Channels of the widest tile: 16 bytes of a half type a lane.
constexpr int64_t kMaxTileChannels = int64_t{kMaxLanes} * 8;

int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

}  // namespace

Plan make_plan(const Problem& problem, int32_t width) {
  Plan plan;
  plan.width = width;
  const int64_t vectors = ceil_div(problem.channels, width);
  while (plan.lanes < kMaxLanes && plan.lanes < vectors) {
    plan.lanes *= 2;
  }
  plan.groups = kThreads / plan.lanes;
  plan.channel_tiles = ceil_div(vectors, plan.lanes);
  if (problem.batch == 0 || problem.tokens == 0) {
    return plan;
  }
  const int64_t wanted_chunks = ceil_div(kTargetBlocks, problem.batch * plan.channel_tiles);
  const int64_t step = int64_t{plan.groups} * kRows;
  const int64_t chunk_tokens = ceil_div(ceil_div(problem.tokens, wanted_chunks), step) * step;
  plan.chunk_tokens = std::min(chunk_tokens, kMaxChunkTokens);
  plan.chunks = ceil_div(problem.tokens, plan.chunk_tokens);
  return plan;
}

// make_plan gives at most max(wanted_chunks, tokens / kMaxChunkTokens rounded up) chunks, whatever the width, and
// batch * wanted_chunks is at most kTargetBlocks / channel_tiles + batch. Each chunk has a sum a channel and one of
// the weights.
std::size_t workspace_bytes(const Problem& problem) {
  if (problem.attributes.mode == Mode::kFeatures) {
    return 0;
  }
  const int64_t split = kTargetBlocks * (std::min(problem.channels, kMaxTileChannels) + 1);
  const int64_t chunks = std::max<int64_t>(1, ceil_div(problem.tokens, kMaxChunkTokens));
  return static_cast<std::size_t>(split + problem.batch * chunks * (problem.channels + 1)) * sizeof(float);
}

}  // namespace pom::cuda
