// Form "product": the running products of the GELU of x's factors.
#pragma once

#include "tile.cuh"

namespace pom::cuda {

// A thread has two consecutive factors, and computes the preceding ones again. Degrees 1 and 2 thus read and evaluate
// every channel once, degree 3 5/3 times, degree 4 3/2 times and degree 16 9/2 times. With more factors per thread, the
// causal kernel would not fit into its registers.
template <typename T, int32_t Width>
class ProductTile : public TileBase<T, Width, 2> {
  using Base = TileBase<T, Width, 2>;

 public:
  using Base::Base;
  using Base::kRows;
  using typename Base::Loaded;
  using typename Base::Rows;

  __device__ void prepare() const {}

  [[nodiscard]] __device__ Rows features(int32_t base, const Loaded& loaded) const {
    Rows rows;
    this->load_weights(base, &rows);
#pragma unroll
    for (int32_t r = 0; r < kRows; ++r) {
      float product[Width];
      start(this->first_token(base) + r, product);
#pragma unroll
      for (int32_t p = 0; p < 2; ++p) {
        multiply(loaded.packs[r][p], product);
#pragma unroll
        for (int32_t v = 0; v < Width; ++v) {
          rows.features[r][p * Width + v] = product[v];
        }
      }
    }
    this->weigh(base, &rows);
    return rows;
  }

 private:
  // The product of all factors before this thread's first.
  __device__ void start(int32_t token, float (&product)[Width]) const {
#pragma unroll
    for (int32_t v = 0; v < Width; ++v) {
      product[v] = 1.0F;
    }
    if (token >= this->end() || !this->has(0)) {
      return;
    }
    for (int32_t channel = this->channel(0) % this->call_.plan.run; channel < this->channel(0);
         channel += this->call_.plan.run) {
      multiply(this->load_pack(token, channel), product);
    }
  }

  __device__ void multiply(const Pack<T, Width>& factors, float (&product)[Width]) const {
    float values[Width];
    unpack(factors, this->type(), values);
#pragma unroll
    for (int32_t v = 0; v < Width; ++v) {
      product[v] *= gelu(values[v]);
    }
  }
};

}  // namespace pom::cuda
