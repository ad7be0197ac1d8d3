// The two ops that the library has: what their plugins are called, and what is set when a node is made.
#pragma once

#include <cstdint>
#include <optional>

#include "pom/aggregate.h"
#include "pom/gate.h"

namespace pom::tensorrt {

enum class Op : int32_t { kAggregation, kGated };

[[nodiscard]] constexpr const char* name_of(Op op) { return op == Op::kGated ? kGatedOpName : kOpName; }

[[nodiscard]] constexpr int32_t required_inputs(Op op) {
  return op == Op::kGated ? kGatedRequiredInputs : kRequiredInputs;
}

// Where the node has an input of the aggregation: the gated op's own stand behind x.
[[nodiscard]] constexpr int32_t position_of(Op op, Input input) {
  return op == Op::kGated && input > kX ? input + static_cast<int32_t>(kGateInputs) : input;
}

struct NodeAttributes {
  Attributes aggregation;
  std::optional<GateActivation> activation;  // of the gated op

  [[nodiscard]] Op op() const { return activation ? Op::kGated : Op::kAggregation; }
};

// One call.
struct NodeProblem {
  Problem aggregation;
  std::optional<Gate> gate;  // of the gated op
};

}  // namespace pom::tensorrt
