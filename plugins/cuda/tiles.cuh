// The tiles of all forms, and the choice of one for a problem.
#pragma once

#include "launch.cuh"
#include "power_tile.cuh"
#include "product_tile.cuh"

namespace pom::cuda {

// Computes the tile step by step, calling take(base, rows). All threads of the block call it together. The next step is
// loaded before this one is computed, if a thread has registers for both.
template <typename Tile, typename Take>
__device__ __forceinline__ void for_each_step(const Call& call, const Tile& tile, Take take) {
  constexpr bool kLoadsAhead = Tile::kPacks == 1;
  typename Tile::Loaded loaded = tile.load(tile.begin());
  tile.prepare();
  for (int32_t step = 0; step < call.plan.steps; ++step) {
    const typename Tile::Loaded current = kLoadsAhead || step == 0 ? loaded : tile.load(tile.base_of(step));
    if (kLoadsAhead && step + 1 < call.plan.steps) {
      loaded = tile.load(tile.base_of(step + 1));
    }
    take(tile.base_of(step), tile.features(tile.base_of(step), current));
  }
}

template <typename T>
struct Chosen {
  using Tile = T;
};

// Calls `start` with the Chosen tile for the problem's form.
template <typename T, int32_t Width, typename Start>
cudaError_t dispatch_tile(const Call& call, Start start) {
  if (call.problem.attributes.form == Form::kProduct) {
    return start(Chosen<ProductTile<T, Width>>{});
  }
  return call.problem.has_rotation ? start(Chosen<RotatedTile<T, Width>>{}) : start(Chosen<PowerTile<T, Width>>{});
}

}  // namespace pom::cuda
