// How a problem is split into blocks. A block has kThreads threads: `lanes` along the columns times `groups` along the
// tokens. It processes one chunk of tokens of one column tile in steps. In each step, a thread has a few consecutive
// tokens, and those of the groups follow each other. In mode "causal", a chunk has a single step, and a block processes
// several chunks in turn.
//
// A column consists of the channels that one thread computes together, `packs` of them at a fixed distance:
//   form power           one channel
//   ... with a rotation  a channel and the one that it is paired with
//   form product         a channel of an even factor and the same channel of the next factor
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "pom/aggregate.h"

namespace pom::cuda {

inline constexpr int32_t kThreads = 256;
// A warp along the columns reads 512 contiguous bytes of a row.
inline constexpr int32_t kMaxLanes = 32;
// For mode "causal", with packs of 16 bytes and with single values. Tiles with few columns and many tokens need few
// links between tiles; even fewer adjacent bytes would waste memory accesses.
inline constexpr int32_t kMaxCausalLanes = 4;
inline constexpr int32_t kMaxSingleCausalLanes = 16;
// The 16-byte loads that a thread has in flight: packs per token times tokens.
inline constexpr int32_t kLoads = 4;
// The number of blocks that a multiprocessor has registers for.
inline constexpr int32_t kBlocksAtOnce = 2;
// The number in an H100. Fixed, so that the order of sums does not depend on the device.
inline constexpr int64_t kMultiprocessors = 132;
// The error of a sequential float32 sum grows with its length; no thread adds more terms than this.
inline constexpr int64_t kMaxChunkTokens = 1024;
// Up to this many steps form a single chunk, since a second kernel would cost more than it saves.
inline constexpr int64_t kMinSteps = 4;
// The dynamic shared memory that is available without requesting more from the device.
inline constexpr int64_t kMaxSharedBytes = int64_t{48} * 1024;

// More blocks of mode "causal" than any current GPU can run at once; those that start late find nothing left to do.
inline constexpr int64_t kMaxRunning = 640;

// Precedes a tile's shared memory: the numbers of the block's next two chunks, and padding to 16-byte alignment.
inline constexpr int32_t kTicketFloats = 4;

struct Plan {
  int32_t width = 1;  // channels per pack
  int32_t packs = 1;  // packs per column of a thread
  int32_t lanes = 1;
  int32_t groups = kThreads;
  int32_t column_tiles = 1;
  int32_t run = 1;  // adjacent channels that are computed alike, see run_channels()
  int32_t steps = 0;
  int32_t chunk_tokens = 0;
  int32_t chunks = 0;
  int64_t blocks = 0;
  int64_t ticket_words = 0;   // for mode "causal", see chain.h
  bool holds_bias = false;    // whether the gate's bias is in shared memory
  bool sums_weights = false;  // for mode "causal": with a mask or a state
  float weight_scale = 1.0F;  // factor of the mask's weights, see kWeightScale
  float epsilon = 0.0F;       // with that factor applied, or 0 without a mask
};

// For a problem that check_sizes() accepts.
[[nodiscard]] Plan make_plan(const Problem& problem, bool has_gate, int32_t width);

// Tokens, channels and blocks are counted in 32 bits on the device, and bytes of the workspace in 64. An empty text
// means that they fit.
[[nodiscard]] std::string check_sizes(const Problem& problem, int64_t output_tokens);

// The space for chunk sums in the workspace for any plan: an upper bound that does not shrink when a dimension grows.
[[nodiscard]] std::size_t sum_bytes(const Problem& problem);

// All channels, those in half a block of the rotation, or those of one factor. A pack must not extend beyond them.
[[nodiscard]] int64_t run_channels(const Problem& problem);

[[nodiscard]] constexpr int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// The tokens that a thread processes at once.
[[nodiscard]] constexpr int32_t rows_at_once(int32_t packs) { return kLoads / packs; }

// In shared memory, a lane's channels are adjacent, so that their addresses differ by constants, and at an odd distance
// from the next lane's, so that lanes use different banks.
[[nodiscard]] constexpr int32_t lane_floats(int32_t lane_channels) { return lane_channels | 1; }

// The dynamic shared memory of a tile kernel: the tickets; the coefficients of form power; the totals; the bias of a
// tile's gates. The totals are a row of a tile's channels and the weights for each group, and one row for what precedes
// the tile; mode "causal" has them twice.
[[nodiscard]] inline int64_t shared_bytes(const Problem& problem, const Plan& plan) {
  const int64_t tile_floats = int64_t{plan.lanes} * lane_floats(plan.width * plan.packs);
  const int64_t coefficients = problem.attributes.form == Form::kPower ? problem.degree * tile_floats : 0;
  const int64_t bias = plan.holds_bias ? tile_floats : 0;
  const int64_t sets = problem.attributes.mode == Mode::kCausal ? 2 : 1;
  const int64_t totals = sets * (int64_t{plan.groups} + 1) * (tile_floats + 1);
  return (kTicketFloats + coefficients + totals + bias) * static_cast<int64_t>(sizeof(float));
}

}  // namespace pom::cuda
