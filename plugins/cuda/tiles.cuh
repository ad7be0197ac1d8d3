// The tiles of all forms, and the choice of one for a problem.
#pragma once

#include "launch.cuh"
#include "power_tile.cuh"
#include "product_tile.cuh"

namespace pom::cuda {

template <typename T>
struct Chosen {
  using Tile = T;
};

// Run `start` with the Chosen tile of the problem's form, for x's type and the plan's width.
template <typename Start>
cudaError_t dispatch_tile(const Call& call, Start start) {
  return dispatch(call, [&](auto element) {
    using E = decltype(element);
    if (call.problem.attributes.form == Form::kProduct) {
      return start(Chosen<ProductTile<typename E::Type, E::kWidth>>{});
    }
    if (call.problem.has_rotation) {
      return start(Chosen<RotatedTile<typename E::Type, E::kWidth>>{});
    }
    return start(Chosen<PowerTile<typename E::Type, E::kWidth>>{});
  });
}

}  // namespace pom::cuda
