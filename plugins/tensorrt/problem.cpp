#include "problem.h"

#include <array>
#include <cstddef>
#include <stdexcept>
#include <string>

namespace pom::tensorrt {
namespace {

using nvinfer1::Dims;

void check_count(int32_t count) {
  if (count < kRequiredInputs || count > static_cast<int32_t>(kInputs.size())) {
    throw std::invalid_argument("takes " + std::to_string(kRequiredInputs) + " or " + std::to_string(kInputs.size()) +
                                " inputs, got " + std::to_string(count));
  }
}

void check_rank(const Dims& dims, std::size_t input, int32_t rank) {
  if (dims.nbDims != rank) {
    throw std::invalid_argument(std::string(kInputs[input]) + " must have " + std::to_string(rank) +
                                " dimensions, got " + std::to_string(dims.nbDims));
  }
}

void check_dimension(const char* what, int64_t expected, int64_t seen) {
  if (seen != expected) {
    throw std::invalid_argument(std::string(what) + " (" + std::to_string(expected) + "), got " + std::to_string(seen));
  }
}

DataType data_type(nvinfer1::DataType type, std::size_t input) {
  switch (type) {
    case nvinfer1::DataType::kFLOAT:
      return DataType::kFloat32;
    case nvinfer1::DataType::kHALF:
      return DataType::kFloat16;
    case nvinfer1::DataType::kBF16:
      return DataType::kBFloat16;
    case nvinfer1::DataType::kBOOL:
      return DataType::kBool;
    default:
      throw std::invalid_argument(std::string(kInputs[input]) + " has TensorRT data type " +
                                  std::to_string(static_cast<int32_t>(type)) + ", which the op does not take");
  }
}

}  // namespace

bool is_data_type(nvinfer1::DataType type) {
  return type == nvinfer1::DataType::kFLOAT || type == nvinfer1::DataType::kHALF || type == nvinfer1::DataType::kBF16;
}

Problem problem_of(const Attributes& attributes, const nvinfer1::PluginTensorDesc* inputs, int32_t count) {
  check_count(count);
  const Dims& x = inputs[0].dims;
  const Dims& coefficients = inputs[1].dims;
  check_rank(x, 0, 3);
  check_rank(coefficients, 1, 2);
  check_dimension("coefficients must have a row for each channel of x", x.d[2], coefficients.d[0]);

  Problem problem;
  problem.attributes = attributes;
  problem.batch = x.d[0];
  problem.tokens = x.d[1];
  problem.channels = x.d[2];
  problem.degree = coefficients.d[1];
  problem.data_type = data_type(inputs[0].type, 0);
  problem.coefficient_type = data_type(inputs[1].type, 1);
  if (count == 3) {
    const Dims& mask = inputs[2].dims;
    check_rank(mask, 2, 2);
    check_dimension("mask must have a column for each token of x", x.d[1], mask.d[1]);
    problem.has_mask = true;
    problem.mask_batch = mask.d[0];
    problem.mask_type = data_type(inputs[2].type, 2);
  }
  if (const std::string error = validate(problem); !error.empty()) {
    throw std::invalid_argument(error);
  }
  return problem;
}

Problem largest_problem_of(const Attributes& attributes, const nvinfer1::DynamicPluginTensorDesc* inputs,
                           int32_t count) {
  check_count(count);
  std::array<nvinfer1::PluginTensorDesc, kInputs.size()> largest{};
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    largest[i] = inputs[i].desc;
    largest[i].dims = inputs[i].max;
  }
  if (count == 3 && inputs[2].desc.dims.nbDims == 2 && inputs[2].desc.dims.d[0] < 0) {
    largest[2].dims.d[0] = largest[0].dims.d[0];
  }
  return problem_of(attributes, largest.data(), count);
}

}  // namespace pom::tensorrt
