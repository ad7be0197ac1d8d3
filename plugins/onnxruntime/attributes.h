// A node's attributes.
#pragma once

#include <onnxruntime_cxx_api.h>

#include "pom/aggregate.h"
#include "pom/gate.h"

namespace pom::onnxruntime {

// Both throw InvalidNode if attributes violate the contract.
[[nodiscard]] Attributes read_attributes(const Ort::ConstKernelInfo& info);

[[nodiscard]] GateActivation read_gate_activation(const Ort::ConstKernelInfo& info);

}  // namespace pom::onnxruntime
