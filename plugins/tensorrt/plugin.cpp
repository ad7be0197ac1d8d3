#include "plugin.h"

#include <stdexcept>
#include <string>

#include "aggregate_cuda.h"
#include "enqueue.h"
#include "problem.h"

namespace pom::tensorrt {
namespace {

constexpr int32_t kDone = 0;
constexpr int32_t kFailed = 1;
// A workspace larger than any device's memory: getWorkspaceSize has no other way to report a failure.
constexpr std::size_t kNoWorkspace = std::size_t{1} << 60;

// Throws if an array passed by TensorRT is missing or too short.
template <typename Item>
void require(const Item* items, int32_t count, int32_t needed, const char* what) {
  if (items == nullptr || count < needed) {
    throw std::invalid_argument("needs " + std::to_string(needed) + " " + what + ", got " +
                                (items == nullptr ? "a null pointer" : std::to_string(count)));
  }
}

}  // namespace

Plugin::Plugin(const char* name, const NodeAttributes& attributes)
    : name_(name), attributes_(attributes), fields_(attributes) {}

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
    auto* copy = new Plugin(name_, attributes_);
    copy->call_ = call_;
    return copy;
  });
}

int32_t Plugin::configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                                const nvinfer1::DynamicPluginTensorDesc*, int32_t) noexcept {
  return guard("configurePlugin", kFailed, [&] {
    static_cast<void>(largest_call_of(attributes_, inputs, input_count));  // checks it
    return kDone;
  });
}

bool Plugin::supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                       int32_t input_count, int32_t output_count) noexcept {
  if (tensors == nullptr || position < 0 || position >= input_count + output_count) {
    return false;
  }
  const nvinfer1::DataType type = tensors[position].desc.type;
  const nvinfer1::DataType x_type = tensors[kX].desc.type;
  if (tensors[position].desc.format != nvinfer1::TensorFormat::kLINEAR) {
    return false;
  }
  const bool is_gate = attributes_.op() == Op::kGated && position == static_cast<int32_t>(kGate);
  const int32_t output = position - input_count;
  if (output == kY || is_gate) {
    return type == x_type;
  }
  if (output == kPresentState || position == this->position(kPastState)) {
    return type == nvinfer1::DataType::kFLOAT;
  }
  if (output == kPresentLength || position == this->position(kPastLength)) {
    return type == nvinfer1::DataType::kINT64;
  }
  // Placeholders accept the same types as their inputs.
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

int32_t Plugin::getOutputDataTypes(nvinfer1::DataType* output_types, int32_t output_count,
                                   const nvinfer1::DataType* input_types, int32_t input_count) const noexcept {
  return guard("getOutputDataTypes", kFailed, [&] {
    require(output_types, output_count, getNbOutputs(), "outputs");
    require(input_types, input_count, attributes_.required_inputs(), "inputs");
    output_types[kY] = input_types[kX];
    if (attributes_.aggregation.stateful) {
      output_types[kPresentState] = nvinfer1::DataType::kFLOAT;
      output_types[kPresentLength] = nvinfer1::DataType::kINT64;
    }
    return kDone;
  });
}

int32_t Plugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count, const nvinfer1::DimsExprs*,
                                int32_t, nvinfer1::DimsExprs* outputs, int32_t output_count,
                                nvinfer1::IExprBuilder& builder) noexcept {
  return guard("getOutputShapes", kFailed, [&] {
    require(outputs, output_count, getNbOutputs(), "outputs");
    require(inputs, input_count, attributes_.required_inputs(), "inputs");
    if (inputs[kX].nbDims != 3) {
      throw std::invalid_argument("x must have 3 dimensions, got " + std::to_string(inputs[kX].nbDims));
    }
    outputs[kY] = inputs[kX];
    if (attributes_.op() == Op::kGated) {
      if (inputs[kGate].nbDims != 3) {
        throw std::invalid_argument("gate must have 3 dimensions, got " + std::to_string(inputs[kGate].nbDims));
      }
      outputs[kY].d[1] = inputs[kGate].d[1];
    } else if (attributes_.aggregation.mode == Mode::kMean) {
      outputs[kY].d[1] = builder.constant(1);
    }
    if (attributes_.aggregation.stateful) {
      outputs[kPresentState] = inputs[position(kPastState)];
      outputs[kPresentLength] = inputs[position(kPastLength)];
    }
    return kDone;
  });
}

std::size_t Plugin::getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                                     const nvinfer1::DynamicPluginTensorDesc*, int32_t) const noexcept {
  return guard<std::size_t>("getWorkspaceSize", kNoWorkspace, [&] {
    const OpCall largest = largest_call_of(attributes_, inputs, input_count);
    return cuda::workspace_bytes(largest.problem, largest.gate);
  });
}

int32_t Plugin::onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t input_count,
                              const nvinfer1::PluginTensorDesc*, int32_t) noexcept {
  call_.reset();
  return guard("onShapeChange", kFailed, [&] {
    call_ = call_of(attributes_, inputs, input_count);
    return kDone;
  });
}

int32_t Plugin::enqueue(const nvinfer1::PluginTensorDesc*, const nvinfer1::PluginTensorDesc*, const void* const* inputs,
                        void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
  return guard("enqueue", kFailed, [&] {
    if (!call_) {
      throw std::logic_error("no shapes were set, or they were refused");
    }
    require(outputs, getNbOutputs(), getNbOutputs(), "outputs");
    cuda::enqueue(*call_, inputs, outputs, workspace, stream);
    return kDone;
  });
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

}  // namespace pom::tensorrt
