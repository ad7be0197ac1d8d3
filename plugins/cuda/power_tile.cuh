// Form "power", with and without a rotation.
#pragma once

#include "tile.cuh"

namespace pom::cuda {

// What both share: the tile's coefficients in shared memory, before the totals.
template <typename T, int32_t Width, int32_t Packs>
class PolynomialTile : public TileBase<T, Width, Packs> {
  using Base = TileBase<T, Width, Packs>;

 public:
  using Base::kRows;
  using Base::kValues;
  using typename Base::Loaded;
  using typename Base::Rows;

  __device__ PolynomialTile(const Call& call, Position position, float* shared)
      : Base(call, position, shared + call.problem.degree * (call.plan.lanes * Base::kLaneFloats)),
        coefficients_(shared) {}

  __device__ void prepare() const {
    const Call& call = this->call_;
    const auto degree = static_cast<int32_t>(call.problem.degree);
    for (auto i = static_cast<int32_t>(threadIdx.x); i < degree * this->tile_channels(); i += kThreads) {
      const int32_t channel = this->channel_of(i / degree);
      coefficients_[i % degree * this->tile_floats() + this->slot(i / degree)] =
          channel < 0 ? 0.0F
                      : read_as_float<T>(call.buffers.coefficients, call.problem.coefficient_type,
                                         int64_t{channel} * degree + i % degree);
    }
    __syncthreads();
  }

 protected:
  // Computes unweighted features, pack by pack. Horner's rule is applied to all tokens at once, so that one coefficient
  // from shared memory is used for kRows products.
  __device__ void evaluate(const Loaded& loaded, Rows* rows) const {
#pragma unroll
    for (int32_t p = 0; p < Packs; ++p) {
      float h[kRows][Width];
      float sums[kRows][Width];
#pragma unroll
      for (int32_t r = 0; r < kRows; ++r) {
        activate(loaded.packs[r][p], this->type(), h[r]);
      }
      const auto degree = static_cast<int32_t>(this->call_.problem.degree);
      const float* row =
          coefficients_ + (degree - 1) * this->tile_floats() + this->lane_ * Base::kLaneFloats + p * Width;
      if (degree == 1) {
        add_coefficients(row, [&](int32_t r, int32_t v, float coefficient) { sums[r][v] = coefficient; });
      } else {
        // The first product is not added to anything, and the highest coefficient needs no copy per token.
        const float* const highest = row;
        row -= this->tile_floats();
        add_coefficients(
            row, [&](int32_t r, int32_t v, float coefficient) { sums[r][v] = highest[v] * h[r][v] + coefficient; });
      }
      for (int32_t power = degree - 3; power >= 0; --power) {
        row -= this->tile_floats();
        add_coefficients(
            row, [&](int32_t r, int32_t v, float coefficient) { sums[r][v] = sums[r][v] * h[r][v] + coefficient; });
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
  // Calls add(row, value, coefficient) with a row of a pack's coefficients.
  template <typename Add>
  __device__ static void add_coefficients(const float* coefficients, Add add) {
#pragma unroll
    for (int32_t v = 0; v < Width; ++v) {
      const float coefficient = coefficients[v];
#pragma unroll
      for (int32_t r = 0; r < kRows; ++r) {
        add(r, v, coefficient);
      }
    }
  }

  float* const coefficients_;
};

template <typename T, int32_t Width>
class PowerTile : public PolynomialTile<T, Width, 1> {
  using Base = PolynomialTile<T, Width, 1>;

 public:
  using Base::Base;
  using Base::kRows;
  using typename Base::Loaded;
  using typename Base::Rows;

  [[nodiscard]] __device__ Rows features(int32_t base, const Loaded& loaded) const {
    Rows rows;
    this->load_weights(base, &rows);
    this->evaluate(loaded, &rows);
    this->weigh(base, &rows);
    return rows;
  }
};

// A column is a pair of channels, numbered like the columns of the tables.
template <typename T, int32_t Width>
class RotatedTile : public PolynomialTile<T, Width, 2> {
  using Base = PolynomialTile<T, Width, 2>;

 public:
  using Base::Base;
  using Base::kRows;
  using typename Base::Loaded;
  using typename Base::Rows;

  [[nodiscard]] __device__ Rows features(int32_t base, const Loaded& loaded) const {
    Rows rows;
    float cos[kRows][Width];
    float sin[kRows][Width];
    load_tables(base, cos, sin);
    this->load_weights(base, &rows);
    this->evaluate(loaded, &rows);
#pragma unroll
    for (int32_t r = 0; r < kRows; ++r) {
#pragma unroll
      for (int32_t v = 0; v < Width; ++v) {
        const float first = rows.features[r][v];
        const float second = rows.features[r][Width + v];
        rows.features[r][v] = first * cos[r][v] - second * sin[r][v];
        rows.features[r][Width + v] = second * cos[r][v] + first * sin[r][v];
      }
    }
    this->weigh(base, &rows);
    return rows;
  }

 private:
  // As in load, values that do not exist are read elsewhere.
  __device__ void load_tables(int32_t base, float (&cos)[kRows][Width], float (&sin)[kRows][Width]) const {
    const Problem& problem = this->call_.problem;
    const int64_t first = problem.rotation_batch == 1 ? 0 : this->position_.batch * problem.tokens;
    const int32_t column = this->has(0) ? this->column() : 0;
#pragma unroll
    for (int32_t r = 0; r < kRows; ++r) {
      const int64_t row = first + this->present(this->first_token(base) + r);
      const int64_t index = row * (problem.channels / 2) + column;
      read_pack<T>(this->call_.buffers.cos, problem.rotation_type, index, cos[r]);
      read_pack<T>(this->call_.buffers.sin, problem.rotation_type, index, sin[r]);
    }
  }
};

}  // namespace pom::cuda
