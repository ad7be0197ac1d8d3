// How a problem is cut into blocks. A block is kThreads threads: `lanes` side by side over channels times
// `groups` over tokens. It walks one chunk of tokens of one channel tile in steps of groups * kRows tokens.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pom/aggregate.h"

namespace pom::cuda {

inline constexpr int32_t kThreads = 256;
// A warp side by side reads 512 contiguous bytes of a row.
inline constexpr int32_t kMaxLanes = 32;
// Tokens a thread holds at once: four 16-byte loads in flight.
inline constexpr int32_t kRows = 4;
// With two blocks a multiprocessor, 32 KB are in flight on it.
inline constexpr int32_t kBlocksAtOnce = 2;
// Two blocks on each of an H100's 132 multiprocessors. Fixed, so that the order of sums, and thus the bits of a
// result, do not depend on the device.
inline constexpr int64_t kTargetBlocks = int64_t{kBlocksAtOnce} * 132;
// A sequential float32 sum drifts with its length; no thread adds more terms than this.
inline constexpr int64_t kMaxChunkTokens = 1024;

struct Plan {
  int32_t width = 1;  // channels of one thread
  int32_t lanes = 1;
  int32_t groups = kThreads;
  int64_t channel_tiles = 1;
  int64_t chunk_tokens = 0;
  int64_t chunks = 0;
};

[[nodiscard]] Plan make_plan(const Problem& problem, int32_t width);

[[nodiscard]] inline int64_t block_count(const Problem& problem, const Plan& plan) {
  return problem.batch * plan.chunks * plan.channel_tiles;
}

// Dynamic shared memory of a tile kernel: the coefficients of a tile, then one total a group and channel, and a group.
[[nodiscard]] inline std::size_t shared_bytes(const Problem& problem, const Plan& plan) {
  const int64_t tile_channels = int64_t{plan.lanes} * plan.width;
  return static_cast<std::size_t>(problem.degree * tile_channels + plan.groups * (tile_channels + 1)) * sizeof(float);
}

}  // namespace pom::cuda
