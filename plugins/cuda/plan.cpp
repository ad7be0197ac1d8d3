#include "plan.h"

#include <algorithm>

namespace pom::cuda {
namespace {

int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// A rotation's halves, and the factors of form product, are computed two at a time.
int32_t packs_of(const Problem& problem) {
  return problem.has_rotation || problem.attributes.form == Form::kProduct ? 2 : 1;
}

}  // namespace

int64_t run_channels(const Problem& problem) {
  return problem.has_rotation ? problem.channels / (int64_t{2} * problem.attributes.rotary_blocks)
                              : problem.chunk_channels();
}

Plan make_plan(const Problem& problem, bool has_gate, int32_t width) {
  Plan plan;
  plan.width = width;
  plan.packs = packs_of(problem);
  plan.run = run_channels(problem);
  plan.holds_bias = has_gate && problem.attributes.mode == Mode::kCausal;
  // The last factor of an odd degree stands alone.
  const int64_t columns = plan.run * ceil_div(problem.channels / plan.run, plan.packs);
  const int64_t vectors = ceil_div(columns, width);
  while (plan.lanes < kMaxLanes && plan.lanes < vectors) {
    plan.lanes *= 2;
  }
  plan.groups = kThreads / plan.lanes;
  if (shared_bytes(problem, plan) > kMaxSharedBytes) {  // the widest tile, rotated, of a high degree
    plan.lanes /= 2;
    plan.groups *= 2;
  }
  plan.column_tiles = ceil_div(vectors, plan.lanes);
  if (problem.batch == 0 || problem.tokens == 0) {
    return plan;
  }
  const int64_t wanted_chunks = ceil_div(kTargetBlocks, problem.batch * plan.column_tiles);
  const int64_t step = int64_t{plan.groups} * (kLoads / plan.packs);
  const int64_t chunk_tokens = ceil_div(ceil_div(problem.tokens, wanted_chunks), step) * step;
  plan.chunk_tokens = std::min(chunk_tokens, kMaxChunkTokens);
  plan.chunks = ceil_div(problem.tokens, plan.chunk_tokens);
  return plan;
}

// make_plan gives at most max(wanted_chunks, tokens / kMaxChunkTokens rounded up) chunks, whatever the width, and
// batch * wanted_chunks is at most kTargetBlocks / column_tiles + batch. Each chunk has a sum a channel and one of
// the weights. The widest tile has 16 bytes of a half type a pack.
std::size_t sum_bytes(const Problem& problem) {
  if (problem.attributes.mode == Mode::kFeatures) {
    return 0;
  }
  const int64_t max_tile_channels = int64_t{kMaxLanes} * 8 * packs_of(problem);
  const int64_t split = kTargetBlocks * (std::min(problem.channels, max_tile_channels) + 1);
  const int64_t chunks = std::max<int64_t>(1, ceil_div(problem.tokens, kMaxChunkTokens));
  return static_cast<std::size_t>(split + problem.batch * chunks * (problem.channels + 1)) * sizeof(float);
}

}  // namespace pom::cuda
