// The two ops under all their names, as far as their nodes differ.
#pragma once

#include <cstddef>

#include "pom/call.h"
#include "pom/contract.h"

namespace pom::onnxruntime {

struct OpSignature {
  const char* name;
  const char* const* input_names;
  size_t inputs;
  size_t required_inputs;
  bool gated;

  // The position of an input of the aggregation in the node.
  [[nodiscard]] constexpr size_t position(size_t input) const { return position_of(gated, input); }
};

[[nodiscard]] constexpr OpSignature plain_signature(const char* name) {
  return {name, kInputs.data(), kInputs.size(), kRequiredInputs, false};
}
[[nodiscard]] constexpr OpSignature gated_signature(const char* name) {
  return {name, kGatedInputs.data(), kGatedInputs.size(), kGatedRequiredInputs, true};
}

}  // namespace pom::onnxruntime
