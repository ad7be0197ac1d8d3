// From TensorRT's tensor descriptions to pom::OpCall.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>

#include "op.h"

namespace pom::tensorrt {

[[nodiscard]] bool is_data_type(nvinfer1::DataType type);  // of x

// What the op is called with. Each throws std::invalid_argument, with one line that says what is wrong and the value
// seen, for a call that the op does not define.
[[nodiscard]] OpCall call_of(const NodeAttributes& attributes, const nvinfer1::PluginTensorDesc* inputs, int32_t count);
// Of the largest shapes; a batch of another input than x that is not fixed counts as x's.
[[nodiscard]] OpCall largest_call_of(const NodeAttributes& attributes, const nvinfer1::DynamicPluginTensorDesc* inputs,
                                     int32_t count);

}  // namespace pom::tensorrt
