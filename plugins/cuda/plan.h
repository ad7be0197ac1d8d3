// How a problem is cut into blocks. A block is kThreads threads: `lanes` side by side over columns times `groups`
// over tokens. It has one chunk of tokens of one column tile, and walks it in steps: in each, a thread has a few
// consecutive tokens, and the groups' follow each other. In mode "causal" a chunk is one step, and a block takes
// several in turn.
//
// A column is the channels that one thread computes together, `packs` of them at a fixed distance:
//   form power           one channel
//   ... and a rotation   a channel and the one it is paired with
//   form product         one channel of an even factor and the same of the next
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "pom/aggregate.h"

namespace pom::cuda {

inline constexpr int32_t kThreads = 256;
// A warp side by side reads 512 contiguous bytes of a row.
inline constexpr int32_t kMaxLanes = 32;
// Of mode "causal", with packs of 16 bytes and with single values. Few columns and many tokens a tile make few links
// between tiles; fewer bytes side by side than these would waste memory's accesses.
inline constexpr int32_t kMaxCausalLanes = 4;
inline constexpr int32_t kMaxSingleCausalLanes = 16;
// 16-byte loads that a thread has in flight: the packs of one token times tokens.
inline constexpr int32_t kLoads = 4;
// Blocks that a multiprocessor has registers for.
inline constexpr int32_t kBlocksAtOnce = 2;
// An H100's. Fixed, so that the order of sums does not depend on the device.
inline constexpr int64_t kMultiprocessors = 132;
// A sequential float32 sum drifts with its length; no thread adds more terms than this.
inline constexpr int64_t kMaxChunkTokens = 1024;
// So few steps are one chunk: a second kernel would cost more than it saves.
inline constexpr int64_t kMinSteps = 4;
// Of dynamic shared memory, without asking the device for more.
inline constexpr int64_t kMaxSharedBytes = int64_t{48} * 1024;

// More blocks of mode "causal" than any GPU of today has room for; those that start late find nothing left to do.
inline constexpr int64_t kMaxRunning = 640;

// In front of a tile's shared memory: the numbers of the block's next two chunks, and 16-byte alignment for the rest.
inline constexpr int32_t kTicketFloats = 4;

struct Plan {
  int32_t width = 1;  // channels of one pack
  int32_t packs = 1;  // of one thread's column
  int32_t lanes = 1;
  int32_t groups = kThreads;
  int32_t column_tiles = 1;
  int32_t run = 1;  // channels side by side that are computed alike, see run_channels()
  int32_t steps = 0;
  int32_t chunk_tokens = 0;
  int32_t chunks = 0;
  int64_t blocks = 0;
  int64_t ticket_words = 0;   // of mode "causal", see chain.h
  bool holds_bias = false;    // that of the gate, in shared memory
  bool sums_weights = false;  // of mode "causal": with a mask or a state
  float weight_scale = 1.0F;  // of the mask's weights, see kWeightScale
  float epsilon = 0.0F;       // so scaled, and 0 without a mask
};

// For a problem of check_sizes().
[[nodiscard]] Plan make_plan(const Problem& problem, bool has_gate, int32_t width);

// Tokens and channels are counted in 32 bits on the device, as are blocks, and bytes of the workspace in 64. Empty
// text: they fit.
[[nodiscard]] std::string check_sizes(const Problem& problem, int64_t output_tokens);

// What the sums of chunks take of the workspace for any plan: an upper bound that shrinks with no dimension.
[[nodiscard]] std::size_t sum_bytes(const Problem& problem);

// All channels, those of half a block of the rotation, or those of one factor. A pack must not cross their end.
[[nodiscard]] int64_t run_channels(const Problem& problem);

[[nodiscard]] constexpr int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// Tokens of a thread at once.
[[nodiscard]] constexpr int32_t rows_at_once(int32_t packs) { return kLoads / packs; }

// Shared memory keeps a lane's channels side by side, so that their addresses differ by constants, and at an odd
// distance from the next lane's, so that lanes hit different banks.
[[nodiscard]] constexpr int32_t lane_floats(int32_t lane_channels) { return lane_channels | 1; }

// Dynamic shared memory of a tile kernel: the tickets; form power's coefficients; the totals, which are a row of a
// tile's channels and the weights for each group and one for what comes before the tile, twice in mode "causal"; the
// bias of a tile's gates.
[[nodiscard]] inline int64_t shared_bytes(const Problem& problem, const Plan& plan) {
  const int64_t tile_floats = int64_t{plan.lanes} * lane_floats(plan.width * plan.packs);
  const int64_t coefficients = problem.attributes.form == Form::kPower ? problem.degree * tile_floats : 0;
  const int64_t bias = plan.holds_bias ? tile_floats : 0;
  const int64_t sets = problem.attributes.mode == Mode::kCausal ? 2 : 1;
  const int64_t totals = sets * (int64_t{plan.groups} + 1) * (tile_floats + 1);
  return (kTicketFloats + coefficients + totals + bias) * static_cast<int64_t>(sizeof(float));
}

}  // namespace pom::cuda
