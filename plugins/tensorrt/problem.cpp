#include "problem.h"

#include <stdexcept>
#include <string>
#include <vector>

namespace pom::tensorrt {
namespace {

DataType data_type(nvinfer1::DataType type, int32_t input) {
  switch (type) {
    case nvinfer1::DataType::kFLOAT:
      return DataType::kFloat32;
    case nvinfer1::DataType::kHALF:
      return DataType::kFloat16;
    case nvinfer1::DataType::kBF16:
      return DataType::kBFloat16;
    case nvinfer1::DataType::kBOOL:
      return DataType::kBool;
    case nvinfer1::DataType::kINT64:
      return DataType::kInt64;
    default:
      throw std::invalid_argument("input " + std::to_string(input) + " has TensorRT data type " +
                                  std::to_string(static_cast<int32_t>(type)) + ", which the op does not take");
  }
}

std::vector<int64_t> shape_of(const nvinfer1::Dims& dims, int32_t input) {
  if (dims.nbDims < 0 || dims.nbDims > nvinfer1::Dims::MAX_DIMS) {
    throw std::invalid_argument("input " + std::to_string(input) + " has " + std::to_string(dims.nbDims) +
                                " dimensions");
  }
  return {dims.d, dims.d + dims.nbDims};
}

template <typename Description>
void require(const Description* inputs) {
  if (inputs == nullptr) {
    throw std::invalid_argument("the inputs are a null pointer");
  }
}

}  // namespace

bool is_data_type(nvinfer1::DataType type) {
  return type == nvinfer1::DataType::kFLOAT || type == nvinfer1::DataType::kHALF || type == nvinfer1::DataType::kBF16;
}

OpCall call_of(const NodeAttributes& attributes, const nvinfer1::PluginTensorDesc* inputs, int32_t count) {
  require(inputs);
  std::vector<TensorInfo> tensors;
  for (int32_t i = 0; i < count; ++i) {
    tensors.push_back({true, data_type(inputs[i].type, i), shape_of(inputs[i].dims, i)});
  }
  OpCall call;
  if (const std::string error = describe(attributes, tensors, &call); !error.empty()) {
    throw std::invalid_argument(error);
  }
  return call;
}

OpCall largest_call_of(const NodeAttributes& attributes, const nvinfer1::DynamicPluginTensorDesc* inputs,
                       int32_t count) {
  require(inputs);
  const Op op = attributes.op();
  std::vector<nvinfer1::PluginTensorDesc> largest;
  for (int32_t i = 0; i < count; ++i) {
    largest.push_back(inputs[i].desc);
    nvinfer1::Dims& dims = largest.back().dims;
    dims = inputs[i].max;
    // A table without a batch axis has rank 2, and a placeholder rank 1.
    const int32_t batched_rank = i == position_of(op, kMask) ? 2 : i == position_of(op, kPastLength) ? 1 : 3;
    if (dims.nbDims == batched_rank && inputs[i].desc.dims.d[0] < 0) {
      dims.d[0] = largest[kX].dims.d[0];
    }
  }
  return call_of(attributes, largest.data(), count);
}

}  // namespace pom::tensorrt
