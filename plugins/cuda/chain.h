// What the tiles of mode "causal" pass to each other through the workspace.
//
// A stream consists of the tiles of one column tile and one row of the batch, which only wait for each other. Here, a
// column is a channel or, after the channels, the weights, which each column tile adds up:
//   tickets   [batch][column tile]          number of chunks of a stream that have been taken, 32 bits
//   sums      [batch][chunk][column]        sum of one chunk
//   spans     [batch][span][column]         sum of kRadix chunks
//   prefixes  [batch][long span][column][2] sum of all tokens up to the end of kRadix spans, and its rounding error
// Each word of the last three contains a float and, in its upper half, whether the float is valid. A single access
// reads both, so that no fence is needed. Everything is initially zero.
#pragma once

#include <cstddef>
#include <cstdint>

#include "plan.h"

namespace pom::cuda {

using Word = unsigned long long;  // NOLINT: CUDA's atomics are declared for it

// In words, so that whatever follows is aligned.
[[nodiscard]] constexpr int64_t ticket_words(int64_t streams) { return ceil_div(streams, 2); }

// A chunk waits for fewer than kRadix sums, as many spans and a prefix, all of which it can load at once. The prefixes,
// which follow from each other, are kRadix * kRadix chunks apart.
inline constexpr int32_t kRadix = 8;

[[nodiscard]] constexpr std::size_t chain_bytes(const Problem& problem, int64_t column_tiles, int64_t chunks) {
  const int64_t spans = ceil_div(chunks, kRadix);
  const int64_t words =
      problem.batch * (problem.channels + column_tiles) * (chunks + spans + 2 * ceil_div(spans, kRadix));
  return static_cast<std::size_t>(ticket_words(problem.batch * column_tiles) + words) * sizeof(Word);
}

}  // namespace pom::cuda
