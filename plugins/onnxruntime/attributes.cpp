#include "attributes.h"

#include <limits>
#include <string>

#include "status.h"

namespace pom::onnxruntime {
namespace {

// Returns an empty text if there is an attribute with this name and type, else ONNX Runtime's message.
template <typename Value>
std::string read(const Ort::ConstKernelInfo& info, const std::string& name, Value* value) {
  try {
    *value = info.GetAttribute<Value>(name.c_str());
    return {};
  } catch (const Ort::Exception& error) {
    return error.what();
  }
}

// Keeps the contract's default if the node lacks the attribute. One of another type is an error, not a missing
// attribute. ONNX Runtime has no query for this, but its message differs from the one for a name that no node has.
template <typename Value>
bool read_attribute(const Ort::ConstKernelInfo& info, const std::string& name, const char* type, Value* value) {
  const std::string error = read(info, name, value);
  if (error.empty()) {
    return true;
  }
  const std::string absent = "pom_absent_attribute";
  Value unused{};
  std::string said_of_absent = read(info, absent, &unused);
  for (std::size_t at = 0; (at = said_of_absent.find(absent, at)) != std::string::npos; at += name.size()) {
    said_of_absent.replace(at, absent.size(), name);
  }
  if (error != said_of_absent) {
    throw InvalidNode(name + " must be " + type + ", and the node has it as another type");
  }
  return false;
}

// Also keeps the contract's default if the node lacks the attribute.
void read_integer(const Ort::ConstKernelInfo& info, const char* name, int32_t* value) {
  int64_t wide = *value;
  read_attribute(info, name, "an integer", &wide);
  if (wide < std::numeric_limits<int32_t>::min() || wide > std::numeric_limits<int32_t>::max()) {
    throw InvalidNode(std::string(name) + " is out of range, got " + std::to_string(wide));
  }
  *value = static_cast<int32_t>(wide);
}

template <typename Names>
std::string listed(const Names& names) {
  std::string text;
  for (const char* name : names) {
    text += (text.empty() ? "" : ", ") + quoted(name);
  }
  return text;
}

}  // namespace

Attributes read_attributes(const Ort::ConstKernelInfo& info) {
  Attributes attributes;
  std::string form = kForms[static_cast<size_t>(attributes.form)];
  read_attribute(info, "form", "a string", &form);
  if (!parse_form(form, &attributes.form)) {
    throw InvalidNode("form must be one of " + listed(kForms) + ", got " + quoted(form));
  }
  std::string mode;
  if (!read_attribute(info, "mode", "a string", &mode)) {
    throw InvalidNode("the attribute mode is missing: it must be one of " + listed(kModes));
  }
  if (!parse_mode(mode, &attributes.mode)) {
    throw InvalidNode("mode must be one of " + listed(kModes) + ", got " + quoted(mode));
  }
  read_integer(info, "degree", &attributes.degree);
  read_integer(info, "rotary_blocks", &attributes.rotary_blocks);
  read_attribute(info, "epsilon", "a float", &attributes.epsilon);
  int32_t stateful = 0;
  read_integer(info, "stateful", &stateful);
  if (stateful != 0 && stateful != 1) {
    throw InvalidNode("stateful must be 0 or 1, got " + std::to_string(stateful));
  }
  attributes.stateful = stateful == 1;
  for (const char* for_tensorrt : {"plugin_version", "plugin_namespace"}) {
    std::string unused;
    read_attribute(info, for_tensorrt, "a string", &unused);
  }
  throw_if(validate(attributes));
  return attributes;
}

GateActivation read_gate_activation(const Ort::ConstKernelInfo& info) {
  std::string text;
  if (!read_attribute(info, "gate_activation", "a string", &text)) {
    throw InvalidNode("the attribute gate_activation is missing: it must be one of " + listed(kGateActivations));
  }
  GateActivation activation{};
  if (!parse_gate_activation(text, &activation)) {
    throw InvalidNode("gate_activation must be one of " + listed(kGateActivations) + ", got " + quoted(text));
  }
  return activation;
}

}  // namespace pom::onnxruntime
