#include "layout.h"

#include <algorithm>

namespace pom::cpu {
namespace {

// Tokens of one task where the tokens can be cut without reading them twice: enough to keep the partial sums small
// against the input, few enough to keep every thread busy.
constexpr int64_t kChunkTokens = 128;
// A causal call reads the input twice where its tokens are cut. So only its channels are, in narrower blocks, unless
// that gives too few tasks for the tokens there are. Wide blocks are read faster.
constexpr int64_t kWideCausalChannels = 256;
constexpr int64_t kNarrowCausalChannels = 128;
constexpr int64_t kCausalTasks = 4;
constexpr int64_t kCausalChunkTokens = 1024;

int64_t divide_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

int64_t parts_of(const Problem& problem) {
  if (problem.attributes.form == Form::kProduct) {
    return problem.degree;
  }
  return problem.has_rotation ? 2 : 1;
}

}  // namespace

Layout::Layout(const Problem& problem)
    : runs(problem.has_rotation ? problem.attributes.rotary_blocks : 1),
      parts(parts_of(problem)),
      width(problem.channels / (runs * parts)),
      scratch_width(padded(width)),
      scratch_channels(runs * parts * scratch_width) {
  if (problem.attributes.mode == Mode::kCausal) {
    const auto has_enough_tasks = [&] { return problem.batch * blocks >= kCausalTasks; };
    cut_columns(kWideCausalChannels / parts);
    if (!has_enough_tasks()) {
      cut_columns(kNarrowCausalChannels / parts);
    }
    chunk_tokens = has_enough_tasks() ? std::max<int64_t>(problem.tokens, 1) : kCausalChunkTokens;
  } else {
    cut_columns(kMaxBlockColumns);
    chunk_tokens = kChunkTokens;
  }
  chunks = divide_up(problem.tokens, chunk_tokens);
}

void Layout::cut_columns(int64_t columns) {
  // Whole paddings, so that no row of scratch is shared by two tasks.
  block_columns = std::max(columns / kPadding, int64_t{1}) * kPadding;
  run_blocks = divide_up(width, block_columns);
  blocks = runs * run_blocks;
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
