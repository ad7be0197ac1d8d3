// What the tiles of mode "causal" hand to each other through the workspace.
//
// A stream is the tiles of one column tile and one row of the batch: they wait for each other, and for no other's. A
// column here is a channel, or behind the channels the weights, as each column tile adds them up:
//   tickets   [batch][column tile]          chunks of a stream that have been taken, of 32 bits
//   sums      [batch][chunk][column]        of one chunk
//   spans     [batch][span][column]         of kRadix chunks
//   prefixes  [batch][long span][column][2] of all tokens up to the end of kRadix spans, and its rounding error
// A word of the last three holds a float and, in its upper half, whether it is there: one access reads both, so that no
// fence is needed. All of it is zero at first.
#pragma once

#include <cstddef>
#include <cstdint>

#include "plan.h"

namespace pom::cuda {

using Word = unsigned long long;  // NOLINT: CUDA's atomics are declared for it

// In words, so that what follows is aligned.
[[nodiscard]] constexpr int64_t ticket_words(int64_t streams) { return ceil_div(streams, 2); }

// A chunk waits for fewer than kRadix sums, as many spans and a prefix, all of which it can ask for at once; and the
// prefixes, which follow from each other, are kRadix * kRadix chunks apart.
inline constexpr int32_t kRadix = 8;

[[nodiscard]] constexpr std::size_t chain_bytes(const Problem& problem, int64_t column_tiles, int64_t chunks) {
  const int64_t spans = ceil_div(chunks, kRadix);
  const int64_t words =
      problem.batch * (problem.channels + column_tiles) * (chunks + spans + 2 * ceil_div(spans, kRadix));
  return static_cast<std::size_t>(ticket_words(problem.batch * column_tiles) + words) * sizeof(Word);
}

}  // namespace pom::cuda
