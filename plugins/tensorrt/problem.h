// Converts TensorRT's tensor descriptions to pom::OpCall.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>

#include "op.h"

namespace pom::tensorrt {

[[nodiscard]] bool is_data_type(nvinfer1::DataType type);  // whether x may have this type

// The arguments of a call. Each throws std::invalid_argument, with one line that says what is wrong and names the
// value, for a call that the op does not define.
[[nodiscard]] OpCall call_of(const NodeAttributes& attributes, const nvinfer1::PluginTensorDesc* inputs, int32_t count);
// For the largest shapes; if the batch of an input other than x is not fixed, it counts as x's.
[[nodiscard]] OpCall largest_call_of(const NodeAttributes& attributes, const nvinfer1::DynamicPluginTensorDesc* inputs,
                                     int32_t count);

}  // namespace pom::tensorrt
