// The two ops, as far as their nodes differ.
#pragma once

#include <cstddef>

#include "pom/aggregate.h"
#include "pom/contract.h"
#include "pom/gate.h"

namespace pom::onnxruntime {

struct OpSignature {
  const char* name;
  const char* const* input_names;
  size_t inputs;
  size_t required_inputs;
  bool gated;

  // Where the node has an input of the aggregation.
  [[nodiscard]] constexpr size_t position(size_t input) const {
    return gated && input > kX ? input + kGateInputs : input;
  }
};

inline constexpr OpSignature kPlainSignature{kOpName, kInputs.data(), kInputs.size(), kRequiredInputs, false};
inline constexpr OpSignature kGatedSignature{kGatedOpName, kGatedInputs.data(), kGatedInputs.size(),
                                             kGatedRequiredInputs, true};

}  // namespace pom::onnxruntime
