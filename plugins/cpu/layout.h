// How a call is cut into tasks: a batch entry's tokens into chunks, its channels into parts and blocks of columns.
//
// The channels are `runs` times `parts` stretches of `width` channels: channel (run * parts + part) * width + i is in
// column run * width + i. Without a rotation all of them are one stretch, with one the two halves of every block of
// channels are the parts, and in form product every factor is one. The cut depends on the problem's shape alone.
#pragma once

#include <cstdint>

#include "kernel.h"
#include "pom/aggregate.h"

namespace pom::cpu {

class Layout {
 public:
  // What one task works on.
  struct Place {
    int64_t batch;
    int64_t chunk;
    int64_t column;  // the first one
    int64_t columns;
    int64_t channel;  // of the first column, in the first part
    int64_t scratch;  // where this channel is in a row of float32 scratch
  };

  explicit Layout(const Problem& problem);

  // The task'th place, where every batch entry has that many chunks.
  [[nodiscard]] Place place(int64_t task, int64_t chunks_each) const;

  // Columns of a row of scratch that belong to a place's part.
  [[nodiscard]] static int64_t padded(int64_t columns);

  const int64_t runs;
  const int64_t parts;
  const int64_t width;
  const int64_t scratch_width;     // of one stretch in scratch
  const int64_t scratch_channels;  // of all of them
  int64_t chunk_tokens;
  int64_t chunks;
  int64_t block_columns;
  int64_t run_blocks;  // blocks of columns in one run
  int64_t blocks;

 private:
  void cut_columns(int64_t columns);
};

}  // namespace pom::cpu
