// How a call is split into tasks: a batch entry's tokens into chunks, and its channels into parts and blocks of
// columns.
//
// The channels are `runs` times `parts` stretches of `width` channels: channel (run * parts + part) * width + i is in
// column run * width + i. Without a rotation, all channels are a single stretch; with one, the two halves of every
// block of channels are the parts; in form product, every factor is a part. The split depends on the problem's shape.
// Only the width of causal's blocks, which changes no bit, also depends on whether y is written past the caches.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernel.h"
#include "pom/aggregate.h"
#include "pom/contract.h"

namespace pom::cpu {

// A causal task's channels and elements. Without a gate, its data fits into the first-level cache, and there are enough
// blocks for several threads, so that few wait for each other's sums. Blocks are narrower if y is written past the
// caches; if it is not, threads that work side by side on the same rows fetch each other's cache lines.
inline constexpr int64_t kCausalChannels = 512;
inline constexpr int64_t kStreamedCausalChannels = 256;
inline constexpr int64_t kCausalElements = 32768;
inline constexpr int64_t kMaxCausalTokens = 512;
// A task has whole blocks of the kernels' rows, each of which has a sum of its own.
inline constexpr int64_t kCausalRows = kBlockRows;

// Columns of a task, in all of its parts.
inline constexpr int64_t kMaxScratch = kMaxDegree * (kMaxBlockColumns / 2);

constexpr int64_t divide_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }
constexpr int64_t padded(int64_t columns) { return divide_up(columns, kPadding) * kPadding; }

class Layout {
 public:
  // The data of one task.
  struct Place {
    int64_t batch;
    int64_t chunk;
    int64_t block;  // within the batch entry
    int64_t token;  // the first one
    int64_t tokens;
    int64_t column;  // the first one
    int64_t columns;
    int64_t channel;  // of the first column, in the first part
  };

  explicit Layout(const Problem& problem);

  // Splits the columns into blocks of at most this many. The chunks, and with them the order of every sum, do not
  // change.
  void cut_columns(int64_t columns);
  // Splits the tokens into chunks of this many, at least one chunk.
  void cut_tokens(int64_t tokens_each);

  // The blocks of one chunk are adjacent, and so are the chunks of one batch entry.
  [[nodiscard]] int64_t tasks() const { return batch * chunks * blocks; }
  [[nodiscard]] Place place(int64_t task) const;

  // The floats that a task needs for one row of all its parts.
  [[nodiscard]] int64_t scratch() const { return parts * block_columns; }

  int64_t batch;
  int64_t tokens;
  int64_t runs;
  int64_t parts;
  int64_t width;
  int64_t block_columns;  // a multiple of the padding, so that two tasks never share a row of scratch
  int64_t run_blocks;     // blocks of columns in one run
  int64_t blocks;
  int64_t chunk_tokens;
  int64_t chunks;
};

}  // namespace pom::cpu
