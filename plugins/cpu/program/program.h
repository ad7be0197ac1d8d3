// A run of a model's layers as a program: which instructions there are, and which of them may run side by side. It is
// made once a session, from numbers that pom_export/runtime/fusing writes.
//
// Values are numbered: first the node's inputs, then the slots, each a matrix of float32 with as many rows as the call
// has tokens. A slot is scratch memory, which later instructions use again, or one of the node's outputs.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <vector>

#include "../products/products.h"
#include "pom/call.h"

namespace pom::cpu {

// One line that says what is wrong with a program.
class InvalidProgram : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

inline constexpr int64_t kNoValue = -1;

enum class Operation : int64_t {
  kProduct = 1,      // y = activation(x * weights + bias) * factor + added, weights of 4 bits
  kGroups = 2,       // the same for each group of channels, float32 weights
  kRmsNorm = 3,      // y = x / sqrt(mean(x^2) + epsilon) * gain
  kLayerNorm = 4,    // y = (x - mean(x)) / sqrt(variance(x) + epsilon) * gain + bias
  kElementwise = 5,  // y = activation(x) * multiplied * factor + added
  kAggregate = 6,    // our op, gated or not
  kProduct8 = 7,     // as kProduct, weights of 8 bits
};

// Numbers of values are kNoValue where an instruction has none.
struct Instruction {
  Operation operation{};
  int64_t x = kNoValue;
  int64_t y = kNoValue;
  int64_t weights = kNoValue;  // of products; the gain of norms
  int64_t bias = kNoValue;
  int64_t multiplied = kNoValue;
  int64_t added = kNoValue;
  int64_t inputs = 0;   // columns of x, in a group
  int64_t outputs = 0;  // columns of y, in a group
  int64_t groups = 1;
  int64_t bits = 0;   // of a weight
  int64_t block = 0;  // weights of an output that share a scale
  Activation activation = Activation::kNone;
  float factor = 1.0F;
  float epsilon = 0.0F;
  int64_t rounding = kNoValue;     // of x, for products
  std::vector<int64_t> roundings;  // of y, which the instruction does itself, row by row
  // Aggregations.
  OpAttributes attributes;
  int64_t aggregation = kNoValue;    // its position among the program's aggregations
  int64_t present_state = kNoValue;  // positions among the node's outputs
  int64_t present_length = kNoValue;
  // The state of layer `layer` among those of `layers` in one tensor, (batch, layers, kStateRows, channels); without
  // layers, it has a tensor of its own.
  int64_t layer = 0;
  int64_t layers = 0;
  std::vector<int64_t> op_inputs;  // values in the order of the op's inputs

  [[nodiscard]] bool is_product() const { return bits != 0; }
  // Of 16 outputs' packed weights.
  [[nodiscard]] int64_t tile_bytes() const;
  [[nodiscard]] int64_t state_size() const { return kStateRows * outputs; }  // of one layer
};

// A value rounded to 8 bits, in memory that later roundings use again.
struct Rounding {
  int64_t value = kNoValue;
  int64_t inputs = 0;
  int64_t block = 0;
  int64_t buffer = 0;

  [[nodiscard]] int64_t blocks() const { return (inputs + block - 1) / block; }
  [[nodiscard]] int64_t stride() const { return blocks() * block; }
  // Of a row: its values, scales and corrections.
  [[nodiscard]] int64_t bytes() const { return stride() + blocks() * int64_t{sizeof(float) + sizeof(int32_t)}; }
};

// A part of a stage: one phase of an instruction, or a rounding.
struct Piece {
  int64_t instruction = kNoValue;
  int64_t rounding = kNoValue;  // if this is a rounding of its own
  int phase = 0;                // of an aggregation
};

// The pieces of a stage may run at once; a stage starts when the one before it has ended.
using Stage = std::vector<Piece>;

struct Program {
  // Throws InvalidProgram if the numbers are not a program for a node with these inputs and outputs.
  Program(const std::vector<int64_t>& code, const std::vector<float>& constants, int64_t node_inputs,
          int64_t node_outputs);

  [[nodiscard]] bool is_slot(int64_t value) const { return value >= inputs; }
  [[nodiscard]] int64_t width(int64_t slot) const { return widths[static_cast<size_t>(slot - inputs)]; }

  int64_t inputs;
  std::vector<int64_t> widths;  // of the slots
  std::vector<int64_t>
      output_slots;  // for each output of the node, a slot's value, or kNoValue: an aggregation's state
  std::vector<Instruction> instructions;
  std::vector<Rounding> roundings;
  std::vector<int64_t> buffer_bytes;  // a row's, of the memory for roundings
  std::vector<Stage> stages;
  int64_t aggregations = 0;
};

}  // namespace pom::cpu
