// A call of either op, as every adapter (ONNX Runtime, TensorRT, the C interface) describes it: the aggregation and,
// for the gated op, the gate.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "pom/aggregate.h"
#include "pom/gate.h"

namespace pom {

// The position of an input of the aggregation in a node of either op; the gated op's own inputs follow x.
[[nodiscard]] constexpr std::size_t position_of(bool gated, std::size_t input) {
  return gated && input > kX ? input + kGateInputs : input;
}

// What is fixed when a node is created.
struct OpAttributes {
  Attributes aggregation;
  std::optional<GateActivation> activation;  // for the gated op
};

// Attributes, shapes and types of one call. The pointers to its tensors are passed as arrays in the order of kInputs,
// or kGatedInputs with a gate, and of kOutputs.
struct OpCall {
  Problem problem;
  std::optional<Gate> gate;  // for the gated op
};

[[nodiscard]] inline bool is_empty(const OpCall& call) { return is_empty(call.problem, call.gate); }

// Checks the attributes alone, at node creation. An empty text means valid.
[[nodiscard]] inline std::string validate(const OpAttributes& attributes) {
  return attributes.activation ? validate_gated(attributes.aggregation) : validate(attributes.aggregation);
}

// Fills a call from its inputs, in the order of kInputs, or kGatedInputs with an activation (trailing ones may be
// omitted), and validates it. An empty text means success.
[[nodiscard]] inline std::string describe(const OpAttributes& attributes, const std::vector<TensorInfo>& inputs,
                                          OpCall* call) {
  if (!attributes.activation) {
    return describe(attributes.aggregation, inputs, &call->problem);
  }
  call->gate.emplace();
  return describe_gated(attributes.aggregation, *attributes.activation, inputs, &call->problem, &*call->gate);
}

}  // namespace pom
