// One call of either op, as every adapter (ONNX Runtime, TensorRT, the C interface) describes it: the aggregation, and
// the gate over it where the op is the gated one.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "pom/aggregate.h"
#include "pom/gate.h"

namespace pom {

// What is set when a node is made.
struct OpAttributes {
  Attributes aggregation;
  std::optional<GateActivation> activation;  // of the gated op
};

// Attributes, shapes and types of one call; its tensors' pointers come as arrays in the order of kInputs, or with a
// gate of kGatedInputs, and of kOutputs.
struct OpCall {
  Problem problem;
  std::optional<Gate> gate;  // of the gated op
};

[[nodiscard]] inline bool is_empty(const OpCall& call) { return is_empty(call.problem, call.gate); }

// Check the attributes alone, at node creation. Empty text: valid.
[[nodiscard]] inline std::string validate(const OpAttributes& attributes) {
  return attributes.activation ? validate_gated(attributes.aggregation) : validate(attributes.aggregation);
}

// Fill a call from its inputs, in the order of kInputs, or with an activation of kGatedInputs (those at the end may be
// left out), and validate it. Empty text: done.
[[nodiscard]] inline std::string describe(const OpAttributes& attributes, const std::vector<TensorInfo>& inputs,
                                          OpCall* call) {
  if (!attributes.activation) {
    return describe(attributes.aggregation, inputs, &call->problem);
  }
  call->gate.emplace();
  return describe_gated(attributes.aggregation, *attributes.activation, inputs, &call->problem, &*call->gate);
}

}  // namespace pom
