// One call of the op on the CPU, split into phases of tasks. The caller provides the threads.
//
// The split depends on the problem's shape alone, and every sum is computed in a fixed order, so neither the number of
// threads nor the order of the tasks changes a bit of the result. The memory that a call needs does not grow with its
// tokens.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>

#include "coefficients.h"
#include "kernel.h"
#include "layout.h"
#include "pom/aggregate.h"
#include "pom/gate.h"

namespace pom::cpu {

struct Tensors {
  const void* x;
  const void* mask;  // ignored without a mask
  const void* cos;   // ignored without a rotation
  const void* sin;
  const void* gate;  // ignored without a gate
  const float* gate_bias;
  void* y;
  // For a stateful call. The present may overwrite the past, and may be null if nobody needs it.
  const float* past_state = nullptr;
  const int64_t* past_length = nullptr;
  float* present_state = nullptr;
  int64_t* present_length = nullptr;
  int64_t state_stride = 0;  // elements from one batch entry of the states to the next; 0: as many as one has
};

template <typename T>
std::unique_ptr<T[]> uninitialized(int64_t count) {
  return std::unique_ptr<T[]>(new T[static_cast<size_t>(count)]);
}

class Aggregation {
 public:
  // The problem and the gate, if any, must be valid (pom::validate). The coefficients are not read in form product.
  // Throws std::bad_alloc if there is no memory for the partial sums.
  Aggregation(const Kernel& kernel, const Problem& problem, const Gate* gate, const Tensors& tensors,
              const Coefficients& coefficients);

  // A phase may start when the previous one has ended.
  [[nodiscard]] int phases() const { return phase_count_; }

  [[nodiscard]] int64_t tasks(int phase) const { return phases_[static_cast<size_t>(phase)].tasks; }

  // The number of threads that a phase can use.
  [[nodiscard]] int64_t threads(int phase) const;

  // Runs tasks of a phase until none is left; any number of threads may do so at once. Tasks start in order, so that
  // one may wait for earlier ones. Never throws.
  void run(int phase) noexcept;

  // Runs the next task; returns false if none is left.
  bool run_next(int phase) noexcept;

  // Whether no task of a phase waits for another one, and run() may be given the number of each.
  [[nodiscard]] bool in_any_order(int phase) const;
  void run(int phase, int64_t task) noexcept;

 private:
  struct Phase {
    int64_t tasks = 0;
    void (Aggregation::*task)(int64_t) = nullptr;
    std::atomic<int64_t> next{0};
  };

  // The sums of a causal block before the current tile. Only that tile's task reads and writes them.
  struct alignas(64) Carry {
    std::atomic<int64_t> tile{0};
    double weight = 0.0;    // of this call only
    float* sum = nullptr;   // (parts, block columns)
    float* rest = nullptr;  // what sum has lost to rounding
  };
  struct Tile;  // the data of one tile's task

  void add_phase(int64_t tasks, void (Aggregation::*task)(int64_t));
  [[nodiscard]] Rows rows_at(const Layout::Place& place, int64_t token, int64_t count) const;
  [[nodiscard]] Output output_at(const Layout::Place& place, int64_t token, int64_t count) const;
  // Reads weights of some tokens from the mask, floating-point ones multiplied by kWeightScale, and returns their sum.
  double read_weights(int64_t batch, int64_t token, int64_t count, float* weights) const;
  // The factor that turns a sum into its mean: 0 if there are no weights, NaN if they exceed float32's range.
  [[nodiscard]] float scale(double weight) const;

  // Each prepares a mode's phases and what they need.
  void prepare_features();
  void prepare_mean();
  void prepare_causal();
  void prepare_carries();
  void prepare_sums();

  // The phases' tasks: written.cpp, mean.cpp and causal.cpp.
  void features(int64_t task);    // y of a chunk and block
  void accumulate(int64_t task);  // mean: the sum of a chunk and block; a block's last chunk also averages
  void gate(int64_t task);        // gated mean: z of some tokens and a block
  void causal(int64_t task);      // y of a chunk and block, which is a tile

  // Adds a chunk's and block's weighted features to sum and rest; returns the sum of the weights.
  double add_up(const Layout::Place& place, float* sum) const;
  // Computes the mean of a block from its chunks' sums, which are `stride` apart, and the sum of the weights.
  void average(const Layout::Place& place, const float* sums, int64_t stride, double weight);

  // The past and the present of a stateful call.
  [[nodiscard]] double past_weight(int64_t batch) const;
  [[nodiscard]] int64_t state_at(const Layout::Place& place, int64_t part) const;
  void start(const Layout::Place& place, Carry* carry) const;
  void read_past(const Layout::Place& place, int64_t part, double* totals) const;
  void write_present(const Layout::Place& place, const Carry& carry) const;
  void write_present(const Layout::Place& place, int64_t part, const double* totals) const;
  void write_length(const Layout::Place& place, double weight) const;

  // The steps of a tile.
  Rows rows_of(Tile* tile, int64_t row, int64_t count) const;
  void clear(Tile* tile) const;
  void write_averages(Tile* tile) const;
  void take_over(Tile* tile) const;
  void hand_on(const Tile& tile) const;
  void read_scales(Tile* tile) const;

  const Problem problem_;
  const bool gated_;
  const Gate gate_;
  const Tensors tensors_;
  const Coefficients& coefficients_;
  const RowsFunctions& rows_functions_;
  const OutputFunction output_function_;  // null without a gate
  Layout layout_;
  Layout gate_layout_;
  const bool streamed_;  // y is written past the caches
  const float weight_scale_;
  const double epsilon_;  // scaled like the weights
  std::array<Phase, 2> phases_;
  int phase_count_ = 0;

  // Data passed between a block's chunks, if there are several: a batch of many short rows needs no memory for it.
  std::unique_ptr<Carry[]> carries_;                 // causal: (batch, blocks)
  std::unique_ptr<float[]> carry_sums_;              // causal: (batch, blocks, 2, scratch)
  std::unique_ptr<float[]> sums_;                    // mean: (tasks, 2, scratch): sum and rest
  std::unique_ptr<double[]> weights_;                // mean: (tasks)
  std::unique_ptr<std::atomic<int64_t>[]> pending_;  // mean: (batch, blocks), chunks that are not finished
  std::unique_ptr<float[]> means_;                   // gated mean: (batch, channels)
  std::unique_ptr<int64_t[]> lengths_;               // stateful: (batch), of the past, which the present may overwrite
};

}  // namespace pom::cpu
