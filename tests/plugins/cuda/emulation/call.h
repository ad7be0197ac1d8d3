// A call as the tests send it: the problem, and its tensors in guarded memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <istream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "pom/aggregate.h"
#include "pom/gate.h"

namespace pom::test {

// A tensor, and behind its last byte a guard: a step into it stops the address sanitizer, and without that is seen
// afterwards where it changed the guard. It starts as NaN of every float type.
class Buffer {
 public:
  Buffer(std::size_t bytes, std::size_t shift);

  [[nodiscard]] char* data() const { return memory_.get() + shift_; }
  [[nodiscard]] std::string text() const { return {data(), bytes_}; }

  void read(std::istream* in) const;  // throws where that ends too early
  void check_guard() const;           // throws where it was changed

 private:
  [[nodiscard]] char* guard() const { return data() + bytes_; }

  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  std::size_t bytes_;
  std::size_t shift_;
  std::unique_ptr<char, Free> memory_;
};

[[nodiscard]] std::size_t bytes_of(int64_t elements, DataType type);

struct Call {
  Problem problem;
  std::optional<Gate> gate;
  std::size_t shift = 0;        // bytes that x, gate and the output lie off alignment
  std::size_t table_shift = 0;  // the same of cos and sin
  int32_t skipped_barrier = -1;
  std::vector<Buffer> inputs;  // in the order of kInputs or kGatedInputs; what the problem has not is empty

  [[nodiscard]] std::vector<const void*> pointers() const;
  void check_guards() const;
};

// Where a call writes.
class Outputs {
 public:
  explicit Outputs(const Call& call);

  [[nodiscard]] std::vector<void*> pointers() const;  // in the order of kOutputs
  [[nodiscard]] std::string text() const;             // of all, one after the other
  void check_guards() const;

 private:
  std::vector<Buffer> buffers_;
};

// A call is a line
//   FORM MODE ROTARY_BLOCKS EPSILON BATCH TOKENS CHANNELS DEGREE MASK_BATCH ROTATION_BATCH
//   X_TYPE COEFFICIENT_TYPE MASK_TYPE ROTATION_TYPE SHIFT TABLE_SHIFT SKIPPED_BARRIER
//   GATE_ACTIVATION GATE_TOKENS GATES BIAS_TYPE STATEFUL
// (without the breaks) and then the bytes of x, gate, gate_bias, coefficients (form power), mask, cos, sin, past_state
// and past_length.
// MASK_BATCH -1: no mask; ROTATION_BATCH -1: no cos and sin; GATE_TOKENS -1: no gate. Types are DataType's numbers.
// Throws std::runtime_error for what is none.
[[nodiscard]] Call read_call(const std::string& line, std::istream* in);

// Read calls from stdin and write what `run` makes of each to stdout. The first failure ends the program, and the last
// line of a call on stderr is the one that failed.
int serve_calls(std::string (*run)(const Call& call));

}  // namespace pom::test
