// A node's attributes.
#pragma once

#include <onnxruntime_cxx_api.h>

#include "pom/aggregate.h"

namespace pom::onnxruntime {

// Throws InvalidNode where they are not the contract's.
[[nodiscard]] Attributes read_attributes(const Ort::ConstKernelInfo& info);

}  // namespace pom::onnxruntime
