#include "plugin.h"

#include <stdexcept>
#include <string>

#include "aggregate_cuda.h"
#include "problem.h"
#include "status.h"

namespace pom::tensorrt {
namespace {

constexpr int32_t kDone = 0;
constexpr int32_t kFailed = 1;

}  // namespace

Plugin::Plugin(const NodeAttributes& attributes) : attributes_(attributes), fields_(attributes) {}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
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

Plugin* Plugin::clone() noexcept {
  return guard<Plugin*>("clone", nullptr, [&] {
    auto* copy = new Plugin(attributes_);
    copy->problem_ = problem_;
    return copy;
  });
}

int32_t Plugin::configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                                const nvinfer1::DynamicPluginTensorDesc*, int32_t) noexcept {
  return guard("configurePlugin", kFailed, [&] {
    problem_ = largest_problem_of(attributes_, inputs, input_count);
    return kDone;
  });
}

bool Plugin::supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                       int32_t input_count, int32_t) noexcept {
  const nvinfer1::DataType type = tensors[position].desc.type;
  const nvinfer1::DataType x_type = tensors[kX].desc.type;
  if (tensors[position].desc.format != nvinfer1::TensorFormat::kLINEAR) {
    return false;
  }
  const bool is_gate = attributes_.op() == Op::kGated && position == static_cast<int32_t>(kGate);
  if (position >= input_count || is_gate) {
    return type == x_type;
  }
  // Placeholders take what their inputs take.
  if (position == kX) {
    return is_data_type(type);
  }
  if (position == this->position(kMask)) {
    return type == x_type || type == nvinfer1::DataType::kBOOL;
  }
  if (position == this->position(kSin)) {
    return type == tensors[this->position(kCos)].desc.type;
  }
  return type == x_type || type == nvinfer1::DataType::kFLOAT;
}

int32_t Plugin::getOutputDataTypes(nvinfer1::DataType* output_types, int32_t, const nvinfer1::DataType* input_types,
                                   int32_t) const noexcept {
  output_types[0] = input_types[kX];
  return kDone;
}

int32_t Plugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t, const nvinfer1::DimsExprs*, int32_t,
                                nvinfer1::DimsExprs* outputs, int32_t, nvinfer1::IExprBuilder& builder) noexcept {
  return guard("getOutputShapes", kFailed, [&] {
    if (inputs[kX].nbDims != 3) {
      throw std::invalid_argument("x must have 3 dimensions, got " + std::to_string(inputs[kX].nbDims));
    }
    outputs[0] = inputs[kX];
    if (attributes_.op() == Op::kGated) {
      if (inputs[kGate].nbDims != 3) {
        throw std::invalid_argument("gate must have 3 dimensions, got " + std::to_string(inputs[kGate].nbDims));
      }
      outputs[0].d[1] = inputs[kGate].d[1];
    } else if (attributes_.aggregation.mode == Mode::kMean) {
      outputs[0].d[1] = builder.constant(1);
    }
    return kDone;
  });
}

std::size_t Plugin::getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                                     const nvinfer1::DynamicPluginTensorDesc*, int32_t) const noexcept {
  return guard<std::size_t>("getWorkspaceSize", 0, [&] {
    const NodeProblem largest = largest_problem_of(attributes_, inputs, input_count);
    return cuda::workspace_bytes(largest.aggregation, largest.gate);
  });
}

int32_t Plugin::onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t input_count,
                              const nvinfer1::PluginTensorDesc*, int32_t) noexcept {
  return guard("onShapeChange", kFailed, [&] {
    problem_ = problem_of(attributes_, inputs, input_count);
    return kDone;
  });
}

int32_t Plugin::enqueue(const nvinfer1::PluginTensorDesc*, const nvinfer1::PluginTensorDesc*, const void* const* inputs,
                        void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
  return guard("enqueue", kFailed, [&] {
    cuda::Buffers buffers = cuda::bind_inputs(problem_.aggregation, problem_.gate.has_value(), inputs);
    buffers.output = outputs[0];
    buffers.workspace = workspace;
    cuda::throw_if_failed(cuda::aggregate(problem_.aggregation, problem_.gate, buffers, stream));
    return kDone;
  });
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

}  // namespace pom::tensorrt
