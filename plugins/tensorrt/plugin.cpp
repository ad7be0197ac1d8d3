#include "plugin.h"

#include <stdexcept>
#include <string>

#include "aggregate_cuda.h"
#include "guard.h"
#include "logger.h"
#include "problem.h"

namespace pom::tensorrt {
namespace {

constexpr int32_t kDone = 0;
constexpr int32_t kFailed = 1;

}  // namespace

PolynomialAggregationPlugin::PolynomialAggregationPlugin(const Attributes& attributes)
    : attributes_(attributes), fields_(attributes) {}

nvinfer1::IPluginCapability* PolynomialAggregationPlugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

PolynomialAggregationPlugin* PolynomialAggregationPlugin::clone() noexcept {
  return guarded<PolynomialAggregationPlugin*>("clone", nullptr, [&] {
    auto* copy = new PolynomialAggregationPlugin(attributes_);
    copy->problem_ = problem_;
    return copy;
  });
}

int32_t PolynomialAggregationPlugin::configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs,
                                                     int32_t input_count, const nvinfer1::DynamicPluginTensorDesc*,
                                                     int32_t) noexcept {
  return guarded("configurePlugin", kFailed, [&] {
    problem_ = largest_problem_of(attributes_, inputs, input_count);
    return kDone;
  });
}

bool PolynomialAggregationPlugin::supportsFormatCombination(int32_t position,
                                                            const nvinfer1::DynamicPluginTensorDesc* tensors,
                                                            int32_t input_count, int32_t) noexcept {
  const nvinfer1::PluginTensorDesc& tensor = tensors[position].desc;
  const nvinfer1::DataType x_type = tensors[kX].desc.type;
  if (tensor.format != nvinfer1::TensorFormat::kLINEAR) {
    return false;
  }
  if (position >= input_count) {
    return tensor.type == x_type;
  }
  switch (position) {  // placeholders take what their inputs take
    case kX:
      return is_data_type(tensor.type);
    case kMask:
      return tensor.type == x_type || tensor.type == nvinfer1::DataType::kBOOL;
    case kSin:
      return tensor.type == tensors[kCos].desc.type;
    default:
      return tensor.type == x_type || tensor.type == nvinfer1::DataType::kFLOAT;
  }
}

int32_t PolynomialAggregationPlugin::getOutputDataTypes(nvinfer1::DataType* output_types, int32_t,
                                                        const nvinfer1::DataType* input_types, int32_t) const noexcept {
  output_types[0] = input_types[kX];
  return kDone;
}

int32_t PolynomialAggregationPlugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t,
                                                     const nvinfer1::DimsExprs*, int32_t, nvinfer1::DimsExprs* outputs,
                                                     int32_t, nvinfer1::IExprBuilder& builder) noexcept {
  return guarded("getOutputShapes", kFailed, [&] {
    if (inputs[kX].nbDims != 3) {
      throw std::invalid_argument("x must have 3 dimensions, got " + std::to_string(inputs[kX].nbDims));
    }
    outputs[0] = inputs[kX];
    if (attributes_.mode == Mode::kMean) {
      outputs[0].d[1] = builder.constant(1);
    }
    return kDone;
  });
}

std::size_t PolynomialAggregationPlugin::getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs,
                                                          int32_t input_count, const nvinfer1::DynamicPluginTensorDesc*,
                                                          int32_t) const noexcept {
  return guarded<std::size_t>("getWorkspaceSize", 0, [&] {
    return cuda::workspace_bytes(largest_problem_of(attributes_, inputs, input_count));
  });
}

int32_t PolynomialAggregationPlugin::onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t input_count,
                                                   const nvinfer1::PluginTensorDesc*, int32_t) noexcept {
  return guarded("onShapeChange", kFailed, [&] {
    problem_ = problem_of(attributes_, inputs, input_count);
    return kDone;
  });
}

int32_t PolynomialAggregationPlugin::enqueue(const nvinfer1::PluginTensorDesc*, const nvinfer1::PluginTensorDesc*,
                                             const void* const* inputs, void* const* outputs, void* workspace,
                                             cudaStream_t stream) noexcept {
  return guarded("enqueue", kFailed, [&] {
    cuda::Buffers buffers;
    buffers.x = inputs[kX];
    buffers.coefficients = attributes_.form == Form::kPower ? inputs[kCoefficients] : nullptr;
    buffers.mask = problem_.has_mask ? inputs[kMask] : nullptr;
    buffers.cos = problem_.has_rotation ? inputs[kCos] : nullptr;
    buffers.sin = problem_.has_rotation ? inputs[kSin] : nullptr;
    buffers.y = outputs[0];
    buffers.workspace = workspace;
    const cudaError_t status = cuda::aggregate(problem_, buffers, stream);
    if (status != cudaSuccess) {
      throw std::runtime_error(std::string(cudaGetErrorName(status)) + ": " + cudaGetErrorString(status));
    }
    return kDone;
  });
}

nvinfer1::IPluginV3* PolynomialAggregationPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  return clone();
}

}  // namespace pom::tensorrt
