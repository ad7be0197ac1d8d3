// Form "power", with and without a rotation.
#pragma once

#include "tile.cuh"

namespace pom::cuda {

// What both have: the tile's coefficients in shared memory, in front of the totals.
template <typename T, int32_t Width, int32_t Packs>
class PolynomialTile : public TileBase<T, Width, Packs> {
  using Base = TileBase<T, Width, Packs>;

 public:
  using Base::kRows;
  using Base::kValues;
  using typename Base::Rows;

  // All threads of the block construct it together.
  __device__ PolynomialTile(const Call& call, float* shared)
      : Base(call, shared + call.problem.degree * (call.plan.lanes * Base::kLaneFloats)), coefficients_(shared) {
    const auto degree = static_cast<int32_t>(call.problem.degree);
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < degree * this->tile_channels(); i += kThreads) {
      const int64_t channel = this->channel_of(i / degree);
      coefficients_[i % degree * this->tile_floats() + this->slot(i / degree)] =
          channel < 0 ? 0.0F
                      : read_as_float<T>(call.buffers.coefficients, call.problem.coefficient_type,
                                         channel * degree + i % degree);
    }
    __syncthreads();
  }

 protected:
  // Unweighted features, pack by pack. Horner's rule on all tokens at once, so that one coefficient from shared memory
  // serves kRows products.
  __device__ void evaluate(const Pack<T, Width> (&loaded)[kRows][Packs], Rows* rows) const {
#pragma unroll
    for (int32_t p = 0; p < Packs; ++p) {
      float h[kRows][Width];
      float sums[kRows][Width] = {};
#pragma unroll
      for (int32_t r = 0; r < kRows; ++r) {
#pragma unroll
        for (int32_t v = 0; v < Width; ++v) {
          h[r][v] = activate(to_float(loaded[r][p].values[v]));
        }
      }
      for (auto power = static_cast<int32_t>(this->call_.problem.degree) - 1; power >= 0; --power) {
        const float* row = coefficients_ + power * this->tile_floats() + this->lane_ * Base::kLaneFloats + p * Width;
#pragma unroll
        for (int32_t v = 0; v < Width; ++v) {
          const float coefficient = row[v];
#pragma unroll
          for (int32_t r = 0; r < kRows; ++r) {
            sums[r][v] = sums[r][v] * h[r][v] + coefficient;
          }
        }
      }
#pragma unroll
      for (int32_t r = 0; r < kRows; ++r) {
#pragma unroll
        for (int32_t v = 0; v < Width; ++v) {
          rows->features[r][p * Width + v] = sums[r][v] * h[r][v];
        }
      }
    }
  }

 private:
  float* coefficients_;
};

template <typename T, int32_t Width>
class PowerTile : public PolynomialTile<T, Width, 1> {
  using Base = PolynomialTile<T, Width, 1>;

 public:
  using Base::Base;
  using Base::kRows;
  using typename Base::Rows;

  [[nodiscard]] __device__ Rows read(int64_t base) const {
    Rows rows;
    Pack<T, Width> loaded[kRows][1];
    this->load_rows(base, loaded, &rows);
    this->evaluate(loaded, &rows);
#pragma unroll
    for (int32_t r = 0; r < kRows; ++r) {
#pragma unroll
      for (int32_t v = 0; v < Width; ++v) {
        rows.features[r][v] = this->weighted(rows.features[r][v], rows.weights[r]);
      }
    }
    return rows;
  }
};

// A column is a pair of channels, and its number that of the tables' column.
template <typename T, int32_t Width>
class RotatedTile : public PolynomialTile<T, Width, 2> {
  using Base = PolynomialTile<T, Width, 2>;

 public:
  using Base::Base;
  using Base::kRows;
  using typename Base::Rows;

  [[nodiscard]] __device__ Rows read(int64_t base) const {
    Rows rows;
    Pack<T, Width> loaded[kRows][2];
    this->load_rows(base, loaded, &rows);
    this->evaluate(loaded, &rows);
#pragma unroll
    for (int32_t r = 0; r < kRows; ++r) {
      rotate(this->first_token(base) + r, rows.weights[r], rows.features[r]);
    }
    return rows;
  }

 private:
  __device__ void rotate(int64_t token, float weight, float (&features)[2 * Width]) const {
    float cos[Width] = {};
    float sin[Width] = {};
    if (token < this->end() && this->has(0)) {
      const Problem& problem = this->call_.problem;
      const int64_t row = (problem.rotation_batch == 1 ? 0 : this->batch_) * problem.tokens + token;
      const int64_t index = row * (problem.channels / 2) + this->column();
      read_pack<T>(this->call_.buffers.cos, problem.rotation_type, index, cos);
      read_pack<T>(this->call_.buffers.sin, problem.rotation_type, index, sin);
    }
#pragma unroll
    for (int32_t v = 0; v < Width; ++v) {
      const float first = features[v];
      const float second = features[Width + v];
      features[v] = this->weighted(first * cos[v] - second * sin[v], weight);
      features[Width + v] = this->weighted(second * cos[v] + first * sin[v], weight);
    }
  }
};

}  // namespace pom::cuda
