// Does what TensorRT does with a plugin: from an ONNX node's attributes to an engine, and from an engine to running
// contexts. It keeps what it passes to a plugin, and what it gets from one, no longer than TensorRT does.
#pragma once

#include <NvInferRuntime.h>

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "call.h"
#include "faults.h"

namespace pom::test {

// A function of the plugin reported failure.
struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Returns the line that the plugin has logged since the last call, or "".
[[nodiscard]] const char* take_log();

inline bool is_done(const void* result) { return result != nullptr; }
inline bool is_done(bool result) { return result; }
inline bool is_done(int32_t status) { return status == 0; }

// Calls a function of the plugin, in which allocations may be made to fail; throws Refused if its result reports
// failure.
template <typename Body>
auto entry(const char* name, Body&& body) {
  const auto result = [&] {
    const faults::InsideEntry inside;
    return body();
  }();
  if (!is_done(result)) {
    throw Refused(name);
  }
  return result;
}

// Plugin fields with copies of their values.
class Fields {
 public:
  Fields() = default;
  explicit Fields(const nvinfer1::PluginFieldCollection& others);

  void add(const char* name, const std::string& text);
  void add(const char* name, int32_t value);
  void add(const char* name, float value);
  [[nodiscard]] const nvinfer1::PluginFieldCollection* collection();

 private:
  struct Field {
    std::string name;
    std::string bytes;
    nvinfer1::PluginFieldType type;
    int32_t length;
  };
  std::list<Field> owned_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

// A node of the graph: `tensors` are its inputs followed by its outputs, and `dynamic_axes` which of their axes are
// dynamic in the network.
struct Node {
  std::string op;
  Fields fields;
  std::vector<nvinfer1::PluginTensorDesc> tensors;
  std::vector<std::vector<int32_t>> dynamic_axes;
  int32_t outputs = 1;

  [[nodiscard]] int32_t input_count() const { return static_cast<int32_t>(tensors.size()) - outputs; }
};

[[nodiscard]] Node node_of(const Call& call);

[[nodiscard]] nvinfer1::PluginTensorDesc describe(nvinfer1::DataType type, const std::vector<int64_t>& sizes);

[[nodiscard]] nvinfer1::IPluginCreatorV3One* creator_of(const std::string& op);

template <typename Capability>
Capability* capability_of(nvinfer1::IPluginV3* plugin, nvinfer1::PluginCapabilityType type) {
  return static_cast<Capability*>(
      entry("getCapabilityInterface", [&] { return plugin->getCapabilityInterface(type); }));
}

// What a file keeps of a plugin.
struct Engine {
  std::string op;
  Fields fields;
  std::size_t workspace_bytes = 0;
};

// Builds an engine for shapes up to `growth` times the node's batch and tokens. Throws Refused.
[[nodiscard]] Engine build(Node node, int64_t growth);

// The plugin of a loaded engine, for changing shapes.
class Context {
 public:
  explicit Context(nvinfer1::IPluginV3* loaded);

  void set_shapes(const Node& node);
  void enqueue(const std::vector<const void*>& inputs, const std::vector<void*>& outputs, void* workspace);

 private:
  std::unique_ptr<nvinfer1::IPluginV3> plugin_;
  nvinfer1::IPluginV3OneRuntime* runtime_;
  std::vector<nvinfer1::PluginTensorDesc> tensors_;
  int32_t outputs_ = 0;
};

[[nodiscard]] std::unique_ptr<nvinfer1::IPluginV3> load(Engine* engine);

}  // namespace pom::test
