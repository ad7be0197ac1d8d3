// How a call is cut into tasks: a batch entry's tokens into chunks, its channels into parts and blocks of columns.
//
// The channels are `runs` times `parts` stretches of `width` channels: channel (run * parts + part) * width + i is in
// column run * width + i. Without a rotation all of them are one stretch, with one the two halves of every block of
// channels are the parts, and in form product every factor is one. The cut depends on the problem's shape;
// only how wide causal's blocks are, which changes no bit, also on whether y is written past the caches.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernel.h"
#include "pom/aggregate.h"
#include "pom/contract.h"

namespace pom::cpu {

// A causal task's channels and elements: what it keeps without a gate fits the first cache, and there are blocks for
// several threads, so that few wait for each other's sums. Narrower ones where y is written past the caches; where it
// is not, threads at work side by side in the same rows fetch each other's cache lines.
inline constexpr int64_t kCausalChannels = 512;
inline constexpr int64_t kStreamedCausalChannels = 256;
inline constexpr int64_t kCausalElements = 32768;
inline constexpr int64_t kMaxCausalTokens = 512;
// A task has whole blocks of the kernels' rows, which are summed apart.
inline constexpr int64_t kCausalRows = kBlockRows;

// Columns of a task's parts.
inline constexpr int64_t kMaxScratch = kMaxDegree * (kMaxBlockColumns / 2);

constexpr int64_t divide_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }
constexpr int64_t padded(int64_t columns) { return divide_up(columns, kPadding) * kPadding; }

class Layout {
 public:
  // What one task works on.
  struct Place {
    int64_t batch;
    int64_t chunk;
    int64_t block;  // of this batch entry
    int64_t token;  // the first one
    int64_t tokens;
    int64_t column;  // the first one
    int64_t columns;
    int64_t channel;  // of the first column, in the first part
  };

  explicit Layout(const Problem& problem);

  // Blocks of at most so many columns. The chunks stay what they are, and with them the order of every sum.
  void cut_columns(int64_t columns);
  // Chunks of so many tokens, at least one chunk.
  void cut_tokens(int64_t tokens_each);

  // The blocks of one chunk are neighbours, and so are the chunks of one batch entry.
  [[nodiscard]] int64_t tasks() const { return batch * chunks * blocks; }
  [[nodiscard]] Place place(int64_t task) const;

  // Floats that one task needs for a row of all its parts.
  [[nodiscard]] int64_t scratch() const { return parts * block_columns; }

  int64_t batch;
  int64_t tokens;
  int64_t runs;
  int64_t parts;
  int64_t width;
  int64_t block_columns;  // whole paddings, so that no row of scratch is shared by two tasks
  int64_t run_blocks;     // blocks of columns in one run
  int64_t blocks;
  int64_t chunk_tokens;
  int64_t chunks;
};

}  // namespace pom::cpu
