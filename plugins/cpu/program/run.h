// One call of a program. The caller provides the threads.
//
// As in aggregation.h, the split depends on the sizes alone and every sum is computed in a fixed order, so neither the
// number of threads nor the order of the tasks changes a bit of the result.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "../aggregation.h"
#include "program.h"

namespace pom::cpu {

// What an aggregation of a program needs in a call, in addition to the values.
struct AggregationCall {
  OpCall call;  // described and valid
  const Coefficients* coefficients = nullptr;
  const float* gate_bias = nullptr;
  float* present_state = nullptr;  // of all its layers; null if nobody needs it
  int64_t* present_length = nullptr;
};

// The memory of a call, by the number of a value; all of it stays the caller's.
struct Memory {
  std::vector<const void*> inputs;
  std::vector<float*> slots;
  std::vector<unsigned char*> buffers;  // for roundings
};

class Run {
 public:
  // The aggregations are in the order of the program's. Throws std::bad_alloc.
  Run(const Program& program, const Kernel& kernel, int64_t rows, Memory memory,
      const std::vector<AggregationCall>& aggregations);

  // The number of threads that a stage can use.
  [[nodiscard]] int64_t threads() const { return threads_; }

  // Runs tasks until the program has ended; any number of threads may do so at once. A thread without a task waits only
  // for tasks that another thread is running, so a single thread is enough.
  void work() noexcept;

 private:
  // A piece of a stage, for the rows of this call.
  struct Part {
    Piece piece;
    int64_t tasks = 0;
    bool in_any_order = true;
    int64_t panel = 0;  // rows of a task
    // Products.
    int64_t tiles = 0;  // of a task
    const unsigned char* weights = nullptr;
    int64_t bytes = 0;
    int64_t tile_bytes = 0;
  };
  // Neighbouring tasks of a stage, which read neighbouring weights. A thread takes a whole segment if it can, because
  // memory is read fastest in one long stretch, and then helps with the others.
  struct alignas(64) Segment {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  struct alignas(64) Level {
    std::atomic<int64_t> done{0};
    int64_t tasks = 0;
    std::vector<Part> parts;
    Segment* segments = nullptr;
    size_t segment_count = 0;
  };
  struct Bytes {
    const unsigned char* first = nullptr;
    int64_t count = 0;
  };

  [[nodiscard]] Part part_of(const Piece& piece) const;
  void split_product(const Instruction& instruction, Part* part) const;
  [[nodiscard]] const float* values(int64_t value) const;
  [[nodiscard]] float* slot(int64_t value) const;
  [[nodiscard]] RoundedRows rounded(int64_t rounding, int64_t first_row) const;
  [[nodiscard]] Epilogue epilogue_of(const Instruction& instruction, int64_t first_row, int64_t width) const;

  void split_levels();
  void run_level(Level* level, size_t thread) const;
  void wait_for(size_t stage, size_t thread) const;
  [[nodiscard]] Bytes next_weights(size_t stage, size_t thread) const;
  void run(const Level& level, int64_t task) const;
  void run(const Part& part, int64_t task) const;
  void multiply(const Instruction& instruction, const Part& part, int64_t task) const;
  void multiply_groups(const Instruction& instruction, const Part& part, int64_t task) const;
  void compute_rows(const Instruction& instruction, const Part& part, int64_t task) const;
  void round(int64_t rounding, int64_t first_row, int64_t rows) const;

  const Program& program_;
  const ProductKernel& kernel_;
  const int64_t rows_;
  const Memory memory_;
  std::vector<std::unique_ptr<Aggregation>> aggregations_;
  std::unique_ptr<Level[]> levels_;
  std::unique_ptr<Segment[]> segments_;  // of all levels
  int64_t threads_ = 1;
  std::atomic<size_t> entered_{0};  // threads
  std::atomic<size_t> current_{0};  // the stage that runs, or an earlier one
};

}  // namespace pom::cpu
