#include "layout.h"

namespace pom::cpu {
namespace {

// The least number of tokens per task if the tokens can be split without reading them twice. The number of tasks, and
// with it that of partial sums, does not grow with the tokens.
constexpr int64_t kChunkTokens = 128;
constexpr int64_t kMaxMeanTasks = 256;
constexpr int64_t kMaxMeanChunks = 64;

int64_t parts_of(const Problem& problem) {
  if (problem.attributes.form == Form::kProduct) {
    return problem.degree;
  }
  return problem.has_rotation ? 2 : 1;
}

}  // namespace

Layout::Layout(const Problem& problem)
    : batch(problem.batch),
      tokens(problem.tokens),
      runs(problem.has_rotation ? problem.attributes.rotary_blocks : 1),
      parts(parts_of(problem)),
      width(problem.channels / (runs * parts)) {
  // With several parts, the kernels keep some data of every column from one part to the next.
  const int64_t most_columns = parts == 1 ? kMaxBlockColumns : kMaxBlockColumns / 2;
  switch (problem.attributes.mode) {
    case Mode::kFeatures:
      cut_columns(most_columns);
      cut_tokens(kChunkTokens);
      break;
    case Mode::kMean: {
      cut_columns(most_columns);
      const int64_t most = std::clamp<int64_t>(kMaxMeanTasks / std::max<int64_t>(batch * blocks, 1), 1, kMaxMeanChunks);
      cut_tokens(std::max(kChunkTokens, divide_up(tokens, most)));
      break;
    }
    case Mode::kCausal:
      cut_columns(kCausalChannels / parts);
      cut_tokens(std::min(kCausalElements / scratch() / kCausalRows * kCausalRows, kMaxCausalTokens));
      break;
  }
}

void Layout::cut_columns(int64_t columns) {
  block_columns = std::min(std::max(columns / kPadding, int64_t{1}) * kPadding, padded(width));
  run_blocks = divide_up(width, block_columns);
  blocks = runs * run_blocks;
}

void Layout::cut_tokens(int64_t tokens_each) {
  chunk_tokens = tokens_each;
  chunks = std::max<int64_t>(divide_up(tokens, chunk_tokens), 1);
}

Layout::Place Layout::place(int64_t task) const {
  Place place{};
  place.block = task % blocks;
  place.chunk = task / blocks % chunks;
  place.batch = task / blocks / chunks;
  const int64_t run = place.block / run_blocks;
  const int64_t offset = place.block % run_blocks * block_columns;
  place.token = place.chunk * chunk_tokens;
  place.tokens = std::min(chunk_tokens, tokens - place.token);
  place.column = run * width + offset;
  place.columns = std::min(block_columns, width - offset);
  place.channel = run * parts * width + offset;
  return place;
}

}  // namespace pom::cpu
