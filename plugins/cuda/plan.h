// How a problem is cut into blocks. A block is kThreads threads: `lanes` side by side over columns times `groups`
// over tokens. It walks one chunk of tokens of one column tile in steps of groups * (kLoads / packs) tokens.
//
// A column is the channels that one thread computes together, `packs` of them at a fixed distance:
//   form power           one channel
//   ... and a rotation   a channel and the one it is paired with
//   form product         one channel of an even factor and the same of the next
#pragma once

#include <cstddef>
#include <cstdint>

#include "pom/aggregate.h"

namespace pom::cuda {

inline constexpr int32_t kThreads = 256;
// A warp side by side reads 512 contiguous bytes of a row.
inline constexpr int32_t kMaxLanes = 32;
// 16-byte loads that a thread has in flight: the packs of one token times tokens.
inline constexpr int32_t kLoads = 4;
// With two blocks a multiprocessor, 32 KB are in flight on it.
inline constexpr int32_t kBlocksAtOnce = 2;
// Two blocks on each of an H100's 132 multiprocessors. Fixed, so that the order of sums, and thus the bits of a
// result, do not depend on the device.
inline constexpr int64_t kTargetBlocks = int64_t{kBlocksAtOnce} * 132;
// A sequential float32 sum drifts with its length; no thread adds more terms than this.
inline constexpr int64_t kMaxChunkTokens = 1024;
// Of dynamic shared memory, without asking the device for more.
inline constexpr int64_t kMaxSharedBytes = int64_t{48} * 1024;

struct Plan {
  int32_t width = 1;  // channels of one pack
  int32_t packs = 1;  // of one thread's column
  int32_t lanes = 1;
  int32_t groups = kThreads;
  int64_t column_tiles = 1;
  int64_t run = 1;  // channels side by side that are computed alike, see run_channels()
  int64_t chunk_tokens = 0;
  int64_t chunks = 0;
  bool holds_bias = false;  // that of the gate, in shared memory
};

[[nodiscard]] Plan make_plan(const Problem& problem, bool has_gate, int32_t width);

// What sum_chunks takes of the workspace for any plan: an upper bound that shrinks with no dimension.
[[nodiscard]] std::size_t sum_bytes(const Problem& problem);

// All channels, those of half a block of the rotation, or those of one factor. A pack must not cross their end.
[[nodiscard]] int64_t run_channels(const Problem& problem);

[[nodiscard]] inline int64_t block_count(const Problem& problem, const Plan& plan) {
  return problem.batch * plan.chunks * plan.column_tiles;
}

// Shared memory keeps a lane's channels side by side, so that their addresses differ by constants, and at an odd
// distance from the next lane's, so that lanes hit different banks.
[[nodiscard]] constexpr int32_t lane_floats(int32_t lane_channels) { return lane_channels | 1; }

// Dynamic shared memory of a tile kernel: the coefficients of a tile, then one total a group and channel, and a group,
// then the bias of a tile's gates.
[[nodiscard]] inline int64_t shared_bytes(const Problem& problem, const Plan& plan) {
  const int64_t tile_floats = int64_t{plan.lanes} * lane_floats(plan.width * plan.packs);
  const int64_t coefficients = problem.attributes.form == Form::kPower ? problem.degree * tile_floats : 0;
  const int64_t bias = plan.holds_bias ? tile_floats : 0;
  return (coefficients + plan.groups * (tile_floats + 1) + bias) * static_cast<int64_t>(sizeof(float));
}

}  // namespace pom::cuda
