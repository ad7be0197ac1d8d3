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

// A tensor, followed by a guard. An access to the guard stops the address sanitizer; without the sanitizer, a changed
// guard is found afterwards. The tensor starts as NaN in every float type.
class Buffer {
 public:
  Buffer(std::size_t bytes, std::size_t shift);

  [[nodiscard]] char* data() const { return memory_.get() + shift_; }
  [[nodiscard]] std::string text() const { return {data(), bytes_}; }

  void read(std::istream* in) const;  // throws if the input is too short
  void check_guard() const;           // throws if the guard was changed

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
  std::size_t shift = 0;        // how many bytes x, gate and the output are off alignment
  std::size_t table_shift = 0;  // the same for cos and sin
  int32_t skipped_barrier = -1;
  std::vector<Buffer> inputs;  // in the order of kInputs or kGatedInputs; absent ones are empty

  [[nodiscard]] std::vector<const void*> pointers() const;
  void check_guards() const;
};

// The memory that a call writes to.
class Outputs {
 public:
  explicit Outputs(const Call& call);

  [[nodiscard]] std::vector<void*> pointers() const;  // in the order of kOutputs
  [[nodiscard]] std::string text() const;             // all of them, one after the other
  void check_guards() const;

 private:
  std::vector<Buffer> buffers_;
};

// Reads a call: a line
//   FORM MODE ROTARY_BLOCKS EPSILON BATCH TOKENS CHANNELS DEGREE MASK_BATCH ROTATION_BATCH
//   X_TYPE COEFFICIENT_TYPE MASK_TYPE ROTATION_TYPE SHIFT TABLE_SHIFT SKIPPED_BARRIER
//   GATE_ACTIVATION GATE_TOKENS GATES BIAS_TYPE STATEFUL
// (without the line breaks), then the bytes of x, gate, gate_bias, coefficients (form power), mask, cos, sin,
// past_state and past_length. MASK_BATCH -1: no mask; ROTATION_BATCH -1: no cos and sin; GATE_TOKENS -1: no gate. Types
// are DataType's numbers. Throws std::runtime_error for anything else.
[[nodiscard]] Call read_call(const std::string& line, std::istream* in);

// Reads calls from stdin, and writes the result of `run` and then `after` for each to stdout, at once. The first
// failure ends the program; the last call printed on stderr is the one that failed.
int serve_calls(std::string (*run)(const Call& call), const std::string& after);

}  // namespace pom::test
