// One call of the op on the CPU, cut into phases of independent tasks. The caller brings the threads.
//
// The cut depends on the problem's shape alone, and every sum is made in a fixed order: neither the number of threads
// nor the order of the tasks changes a bit of the result.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernel.h"
#include "layout.h"
#include "pom/aggregate.h"

namespace pom::cpu {

struct Tensors {
  const void* x;
  const void* coefficients;  // not read in form product
  const void* mask;          // not read without one
  const void* cos;           // nor these without a rotation
  const void* sin;
  void* y;
};

class Aggregation {
 public:
  // A phase may start when the one before it has ended. It may have no task.
  struct Phase {
    int64_t tasks;
    void (Aggregation::*run)(int64_t task);
  };

  // The problem is valid (pom::validate) and its tensors are float32 or float16, or a bool mask.
  // Throws std::bad_alloc where there is no memory for the partial sums.
  Aggregation(const Kernel& kernel, const Problem& problem, const Tensors& tensors);

  [[nodiscard]] const std::vector<Phase>& phases() const { return phases_; }

  // Never throws, and may be called from any thread.
  void run(const Phase& phase, int64_t task) noexcept { (this->*phase.run)(task); }

 private:
  [[nodiscard]] Rows rows_at(const Layout::Place& place) const;
  [[nodiscard]] int64_t mask_row(int64_t batch) const;
  // Of a place's first column in one part.
  [[nodiscard]] float* sum_at(const Layout::Place& place, int64_t part) const;
  [[nodiscard]] float* rest_at(const Layout::Place& place, int64_t part) const;

  void plan();
  void allocate();
  void transpose_coefficients();

  // The phases' tasks.
  void weigh(int64_t mask_row);       // weights and scales from the mask
  void features(int64_t task);        // y of a chunk and block
  void accumulate_all(int64_t task);  // the sum of a chunk and block
  void accumulate_all_but_last(int64_t task);
  void average(int64_t task);  // mean: y of a block, from its chunks' sums
  void scan(int64_t task);     // causal: each chunk's sum becomes the sum of the chunks before it
  void causal(int64_t task);   // y of a chunk and block, from the sum before it

  void accumulate(const Layout::Place& place);

  const Problem problem_;
  const Tensors tensors_;
  const RowsFunctions& functions_;
  const Layout layout_;
  std::vector<Phase> phases_;
  std::unique_ptr<float[]> coefficients_;  // (degree, scratch channels)
  std::unique_ptr<float[]> sums_;          // (batch, chunks, 2, scratch channels): sum and rest
  std::unique_ptr<float[]> weights_;       // (mask rows, tokens), where there is a mask
  std::unique_ptr<float[]> scales_;        // causal: (mask rows or 1, tokens); mean: (mask rows or 1)
};

}  // namespace pom::cpu
