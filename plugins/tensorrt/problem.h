// From TensorRT's tensor descriptions to pom::Problem.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>

#include "pom/aggregate.h"

namespace pom::tensorrt {

[[nodiscard]] bool is_data_type(nvinfer1::DataType type);  // of x

// What the op is called with. Each throws std::invalid_argument, with one line that says what is wrong and the value
// seen, for a call that the op does not define.
[[nodiscard]] Problem problem_of(const Attributes& attributes, const nvinfer1::PluginTensorDesc* inputs, int32_t count);
// Of the largest shapes; a batch of mask, cos or sin that is not fixed counts as x's.
[[nodiscard]] Problem largest_problem_of(const Attributes& attributes, const nvinfer1::DynamicPluginTensorDesc* inputs,
                                         int32_t count);

}  // namespace pom::tensorrt
