// The op's attributes as TensorRT's plugin fields, as in a node or a serialized engine, by name.
#pragma once

#include <NvInferRuntime.h>

#include <string>
#include <vector>

#include "op.h"

namespace pom::tensorrt {

// Reads attributes from fields. Missing ones get their defaults, except for mode and gate_activation, which have none.
// Throws std::invalid_argument with one line that says what is wrong and names the value.
[[nodiscard]] NodeAttributes read_fields(Op op, const nvinfer1::PluginFieldCollection* fields);

// The names and types that a creator announces, in the contract's order.
[[nodiscard]] const nvinfer1::PluginFieldCollection* field_names(Op op);

// Fields with a copy of the attributes. TensorRT reads them through pointers, so they must not move.
class SerializedFields {
 public:
  explicit SerializedFields(const NodeAttributes& attributes);
  SerializedFields(const SerializedFields&) = delete;
  SerializedFields& operator=(const SerializedFields&) = delete;

  [[nodiscard]] const nvinfer1::PluginFieldCollection* collection() const { return &collection_; }

 private:
  std::string form_;
  std::string mode_;
  int32_t degree_;
  int32_t rotary_blocks_;
  float epsilon_;
  int32_t stateful_;
  std::string activation_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_;
};

}  // namespace pom::tensorrt
