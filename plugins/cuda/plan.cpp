#include "plan.h"

#include <algorithm>
#include <limits>

#include "chain.h"

namespace pom::cuda {
namespace {

// The halves of a rotation, and the factors of form product, are computed in pairs.
int32_t packs_of(const Problem& problem) {
  return problem.has_rotation || problem.attributes.form == Form::kProduct ? 2 : 1;
}

// In mode "causal", blocks share the chunks of their columns.
int64_t blocks_of(const Problem& problem, const Plan& plan) {
  const int64_t streams = problem.batch * plan.column_tiles;
  const bool causal = problem.attributes.mode == Mode::kCausal;
  return streams * (causal ? std::min(int64_t{plan.chunks}, ceil_div(kMaxRunning, streams)) : plan.chunks);
}

int64_t mean_steps(const Problem& problem, const Plan& plan) {
  const int64_t step = int64_t{plan.groups} * rows_at_once(plan.packs);
  // As many blocks as run at once: one more would run alone.
  const int64_t blocks = kMultiprocessors * kBlocksAtOnce;
  const int64_t wanted_chunks = std::max(blocks / (problem.batch * plan.column_tiles), int64_t{1});
  const bool few = problem.attributes.mode == Mode::kMean && problem.tokens <= kMinSteps * step;
  const int64_t tokens = few ? problem.tokens : ceil_div(problem.tokens, wanted_chunks);
  return std::min(ceil_div(tokens, step), kMaxChunkTokens / step);
}

int32_t max_lanes(const Problem& problem, const Plan& plan) {
  if (problem.attributes.mode != Mode::kCausal) {
    return kMaxLanes;
  }
  return plan.width > 1 ? kMaxCausalLanes : kMaxSingleCausalLanes;
}

void cut_tokens(const Problem& problem, Plan* plan) {
  const bool causal = problem.attributes.mode == Mode::kCausal;
  plan->steps = static_cast<int32_t>(causal ? 1 : mean_steps(problem, *plan));
  plan->chunk_tokens = plan->steps * plan->groups * rows_at_once(plan->packs);
  plan->chunks = static_cast<int32_t>(ceil_div(problem.tokens, plan->chunk_tokens));
}

}  // namespace

int64_t run_channels(const Problem& problem) {
  return problem.has_rotation ? problem.channels / (int64_t{2} * problem.attributes.rotary_blocks)
                              : problem.chunk_channels();
}

std::string check_sizes(const Problem& problem, int64_t output_tokens) {
  // The device also counts up to a tile's end, and a weight after each column tile's channels.
  constexpr int64_t kMostTokens = std::numeric_limits<int32_t>::max() - kMaxChunkTokens;
  constexpr int64_t kMostChannels = int64_t{1} << 30;
  constexpr int64_t kMostElements = int64_t{1} << 48;
  const int64_t tokens = std::max(problem.tokens, output_tokens);
  const bool counts = tokens <= kMostTokens && problem.channels <= kMostChannels;
  if (counts && problem.batch <= kMostElements / (std::max<int64_t>(tokens, 1) * problem.channels)) {
    return {};
  }
  return "the CUDA kernels take at most " + std::to_string(kMostTokens) + " tokens, " + std::to_string(kMostChannels) +
         " channels and " + std::to_string(kMostElements) + " elements, got " +
         written({problem.batch, tokens, problem.channels});
}

Plan make_plan(const Problem& problem, bool has_gate, int32_t width) {
  Plan plan;
  plan.width = width;
  plan.packs = packs_of(problem);
  plan.run = static_cast<int32_t>(run_channels(problem));
  plan.sums_weights = problem.has_mask || problem.attributes.stateful;
  plan.weight_scale = problem.has_mask && problem.mask_type != DataType::kBool ? kWeightScale : 1.0F;
  plan.epsilon = problem.has_mask ? problem.attributes.epsilon * plan.weight_scale : 0.0F;
  plan.holds_bias = has_gate && problem.attributes.mode == Mode::kCausal;
  // The last factor of an odd degree has no pair.
  const int64_t columns = plan.run * ceil_div(problem.channels / plan.run, plan.packs);
  const int64_t vectors = ceil_div(columns, width);
  while (plan.lanes < max_lanes(problem, plan) && plan.lanes < vectors) {
    plan.lanes *= 2;
  }
  plan.groups = kThreads / plan.lanes;
  if (shared_bytes(problem, plan) > kMaxSharedBytes) {  // the widest tile, with a rotation and a high degree
    plan.lanes /= 2;
    plan.groups *= 2;
  }
  plan.column_tiles = static_cast<int32_t>(ceil_div(vectors, plan.lanes));
  if (problem.batch == 0 || problem.tokens == 0) {
    return plan;
  }
  cut_tokens(problem, &plan);
  plan.blocks = blocks_of(problem, plan);
  plan.ticket_words = ticket_words(problem.batch * plan.column_tiles);
  return plan;
}

// Mode "mean": make_plan creates at most max(wanted_chunks, tokens / kMaxChunkTokens rounded up) chunks, whatever the
// width, and batch * wanted_chunks is at most the concurrent blocks / column_tiles + batch. Each chunk has one sum per
// channel and one of the weights. The widest tile has packs of 16 bytes in a half type.
//
// Mode "causal": the shortest chunk is the one with the most lanes, and a column tile has at least kMaxCausalLanes
// channels, except for the last.
std::size_t sum_bytes(const Problem& problem) {
  if (problem.attributes.mode == Mode::kFeatures || problem.tokens == 0) {
    return 0;
  }
  if (problem.attributes.mode == Mode::kCausal) {
    const int64_t chunk_tokens = int64_t{kThreads} / kMaxSingleCausalLanes * rows_at_once(packs_of(problem));
    const int64_t column_tiles = ceil_div(problem.channels, kMaxCausalLanes);
    return chain_bytes(problem, column_tiles, ceil_div(problem.tokens, chunk_tokens));
  }
  const int64_t max_tile_channels = int64_t{kMaxLanes} * 8 * packs_of(problem);
  const int64_t split = kMultiprocessors * kBlocksAtOnce * (std::min(problem.channels, max_tile_channels) + 1);
  const int64_t chunks = std::max<int64_t>(1, ceil_div(problem.tokens, kMaxChunkTokens));
  return static_cast<std::size_t>(split + problem.batch * chunks * (problem.channels + 1)) * sizeof(float);
}

}  // namespace pom::cuda
