// The gate of a call of pom::GatedPolynomialAggregation, and its validation, which every adapter calls in addition to
// that of the aggregation. Integers only, like aggregate.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "pom/aggregate.h"
#include "pom/gated.h"

namespace pom {

// Positions in kGatedInputs; they are followed by the inputs of the aggregation, without x.
inline constexpr std::size_t kGate = 1;
inline constexpr std::size_t kGateBias = 2;
inline constexpr std::size_t kGateInputs = 2;

//   gate       (batch, tokens, gates), of x's type
//   gate_bias  (gates)
//   z          (batch, tokens, channels); gate c / (channels / gates) applies to channel c
struct Gate {
  GateActivation activation = GateActivation::kIdentity;
  int64_t tokens = 0;  // as many as the problem's in mode "causal"
  int64_t gates = 0;
  DataType bias_type = DataType::kFloat32;  // kFloat32 or the problem's data_type
};

// The number of tokens in y, or in z with a gate.
[[nodiscard]] inline int64_t output_tokens(const Problem& problem, const std::optional<Gate>& gate) {
  return gate ? gate->tokens : problem.output_tokens();
}

// Whether a call has no output, and therefore nothing to do. A stateful call without tokens still passes its state on.
[[nodiscard]] inline bool is_empty(const Problem& problem, const std::optional<Gate>& gate) {
  return problem.batch == 0 || (output_tokens(problem, gate) == 0 && !problem.attributes.stateful);
}

// Returns false if the text is not one of kGateActivations.
inline bool parse_gate_activation(const std::string& text, GateActivation* activation) {
  for (std::size_t i = 0; i < kGateActivations.size(); ++i) {
    if (text == kGateActivations[i]) {
      *activation = static_cast<GateActivation>(i);
      return true;
    }
  }
  return false;
}

namespace gate_detail {

// Returns an empty text, or what is wrong with the gate of a valid problem.
inline std::string check(const Problem& problem, const TensorInfo& gate, const TensorInfo& bias) {
  const std::string batch = std::to_string(problem.batch);
  const bool causal = problem.attributes.mode == Mode::kCausal;
  const std::string tokens = causal ? std::to_string(problem.tokens) : "tokens";
  const bool fits = gate.given && gate.shape.size() == 3 && gate.shape[0] == problem.batch && gate.shape[1] >= 0 &&
                    (!causal || gate.shape[1] == problem.tokens);
  if (!fits) {
    return "gate must be (" + batch + ", " + tokens + ", gates) for x's batch and tokens, got shape " +
           written(gate.shape);
  }
  if (std::string error = validate_size("gate", {problem.batch, gate.shape[1], problem.channels}); !error.empty()) {
    return error;
  }
  const int64_t gates = gate.shape[2];
  if (gates < 1 || problem.channels % gates != 0) {
    return "gate must have a divisor of " + std::to_string(problem.channels) + " channels as its gates, got " +
           std::to_string(gates);
  }
  if (!bias.given || bias.shape != std::vector<int64_t>{gates}) {
    return "gate_bias must be (" + std::to_string(gates) + "), got shape " + written(bias.shape);
  }
  if (gate.type != problem.data_type) {
    return std::string("gate must be of x's type (") + name_of(problem.data_type) + "), got " + name_of(gate.type);
  }
  if (bias.type != DataType::kFloat32 && bias.type != problem.data_type) {
    return std::string("gate_bias must be float32 or of x's type (") + name_of(problem.data_type) + "), got " +
           name_of(bias.type);
  }
  return {};
}

}  // namespace gate_detail

// Checks the attributes alone, at node creation. An empty text means valid.
[[nodiscard]] inline std::string validate_gated(const Attributes& attributes) {
  return attributes.mode == Mode::kFeatures ? "mode \"features\" takes no gate" : validate(attributes);
}

// Fills a problem and its gate from the inputs, in the order of kGatedInputs (trailing ones may be omitted), and
// validates both. An empty text means success.
[[nodiscard]] inline std::string describe_gated(const Attributes& attributes, GateActivation activation,
                                                const std::vector<TensorInfo>& inputs, Problem* problem, Gate* gate) {
  if (inputs.size() < kGatedRequiredInputs || inputs.size() > kGatedInputs.size()) {
    return "takes " + std::to_string(kGatedRequiredInputs) + " to " + std::to_string(kGatedInputs.size()) +
           " inputs, got " + std::to_string(inputs.size());
  }
  std::vector<TensorInfo> others{inputs[kX]};
  others.insert(others.end(), inputs.begin() + kGateBias + 1, inputs.end());
  std::string error = validate_gated(attributes);
  if (error.empty()) {
    error = describe(attributes, others, problem);
  }
  if (error.empty()) {
    error = gate_detail::check(*problem, inputs[kGate], inputs[kGateBias]);
  }
  if (error.empty()) {
    *gate = {activation, inputs[kGate].shape[1], inputs[kGate].shape[2], inputs[kGateBias].type};
  }
  return error;
}

}  // namespace pom
