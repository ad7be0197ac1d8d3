#include "layout.h"

#include <algorithm>

namespace pom::cpu {
namespace {

// Tokens of one task where the tokens can be cut without reading them twice: enough to keep the partial sums small
// against the input, few enough to keep every thread busy.
constexpr int64_t kChunkTokens = 128;
// A causal call reads the input twice where its tokens are cut. So only its channels are, in narrower blocks, unless
// that gives too few tasks for the tokens there are.
constexpr int64_t kCausalBlockChannels = 128;
constexpr int64_t kCausalTasks = 4;
constexpr int64_t kCausalChunkTokens = 1024;

int64_t divide_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

int64_t parts_of(const Problem& problem) {
  if (problem.attributes.form == Form::kProduct) {
    return problem.degree;
  }
  return problem.has_rotation ? 2 : 1;
}

// As many columns as make up some channels, but no row of scratch is shared by two tasks.
int64_t columns_of(int64_t channels, int64_t parts) {
  return std::max(channels / parts / kPadding, int64_t{1}) * kPadding;
}

int64_t causal_chunk_tokens(const Problem& problem, int64_t blocks) {
  const bool enough = problem.batch * blocks >= kCausalTasks;
  return enough ? std::max<int64_t>(problem.tokens, 1) : kCausalChunkTokens;
}

}  // namespace

Layout::Layout(const Problem& problem) {
  const bool causal = problem.attributes.mode == Mode::kCausal;
  runs = problem.has_rotation ? problem.attributes.rotary_blocks : 1;
  parts = parts_of(problem);
  width = problem.channels / (runs * parts);
  scratch_width = padded(width);
  scratch_channels = runs * parts * scratch_width;
  block_columns = columns_of(causal ? kCausalBlockChannels : kMaxBlockChannels, parts);
  run_blocks = divide_up(width, block_columns);
  blocks = runs * run_blocks;
  chunk_tokens = causal ? causal_chunk_tokens(problem, blocks) : kChunkTokens;
  chunks = divide_up(problem.tokens, chunk_tokens);
}

Layout::Place Layout::place(int64_t task, int64_t chunks_each) const {
  const int64_t block = task % blocks;
  const int64_t run = block / run_blocks;
  const int64_t offset = block % run_blocks * block_columns;
  Place place{};
  place.batch = task / blocks / chunks_each;
  place.chunk = task / blocks % chunks_each;
  place.column = run * width + offset;
  place.columns = std::min(block_columns, width - offset);
  place.channel = run * parts * width + offset;
  place.scratch = run * parts * scratch_width + offset;
  return place;
}

int64_t Layout::padded(int64_t columns) { return divide_up(columns, kPadding) * kPadding; }

}  // namespace pom::cpu
