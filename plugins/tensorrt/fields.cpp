#include "fields.h"

#include <cstddef>
#include <cstring>
#include <set>
#include <stdexcept>

namespace pom::tensorrt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

struct KnownField {
  const char* name;
  PluginFieldType type;
  const char* type_name;
};

constexpr KnownField kForm{"form", PluginFieldType::kCHAR, "text"};
constexpr KnownField kDegree{"degree", PluginFieldType::kINT32, "one int32"};
constexpr KnownField kMode{"mode", PluginFieldType::kCHAR, "text"};
constexpr KnownField kRotaryBlocks{"rotary_blocks", PluginFieldType::kINT32, "one int32"};
constexpr KnownField kEpsilon{"epsilon", PluginFieldType::kFLOAT32, "one float32"};
constexpr KnownField kStateful{"stateful", PluginFieldType::kINT32, "one int32"};
constexpr KnownField kActivation{"gate_activation", PluginFieldType::kCHAR, "text"};
constexpr KnownField kVersion{"plugin_version", PluginFieldType::kCHAR, "text"};
constexpr KnownField kNamespace{"plugin_namespace", PluginFieldType::kCHAR, "text"};
constexpr std::array<KnownField, kGatedAttributes.size()> kKnownFields{
    kForm, kDegree, kMode, kRotaryBlocks, kEpsilon, kStateful, kActivation, kVersion, kNamespace};

bool is_of(Op op, const KnownField& field) { return op == Op::kGated || field.name != kActivation.name; }

// "a" or "b"; "a", "b" or "c".
template <std::size_t Size>
std::string one_of(const std::array<const char*, Size>& words) {
  std::string text;
  for (std::size_t i = 0; i < Size; ++i) {
    text += i == 0 ? "" : i + 1 == Size ? " or " : ", ";
    text += quoted(words[i]);
  }
  return text;
}

const KnownField& known(Op op, const std::string& name) {
  for (const KnownField& field : kKnownFields) {
    if (name == field.name && is_of(op, field)) {
      return field;
    }
  }
  throw std::invalid_argument("unknown attribute " + quoted(name));
}

void check_type(const PluginField& field, const KnownField& expected) {
  const bool text = expected.type == PluginFieldType::kCHAR;
  if (field.type != expected.type || field.length < 0 || (!text && (field.length != 1 || field.data == nullptr))) {
    throw std::invalid_argument(std::string(expected.name) + " must be " + expected.type_name +
                                ", got a field of type " + std::to_string(static_cast<int32_t>(field.type)) +
                                " and length " + std::to_string(field.length));
  }
}

// The length of a text field may or may not include a terminating NUL.
std::string text_of(const PluginField& field) {
  if (field.data == nullptr) {
    return {};
  }
  const char* data = static_cast<const char*>(field.data);
  return {data, strnlen(data, static_cast<std::size_t>(field.length))};
}

template <typename T>
T value_of(const PluginField& field) {
  T value;
  std::memcpy(&value, field.data, sizeof value);
  return value;
}

void read_activation(const PluginField& field, std::optional<GateActivation>* activation) {
  GateActivation parsed{};
  if (!parse_gate_activation(text_of(field), &parsed)) {
    throw std::invalid_argument("gate_activation must be " + one_of(kGateActivations) + ", got " +
                                quoted(text_of(field)));
  }
  *activation = parsed;
}

void read_field(const std::string& name, const PluginField& field, Attributes* attributes) {
  if (name == kForm.name && !parse_form(text_of(field), &attributes->form)) {
    throw std::invalid_argument("form must be " + one_of(kForms) + ", got " + quoted(text_of(field)));
  }
  if (name == kMode.name && !parse_mode(text_of(field), &attributes->mode)) {
    throw std::invalid_argument("mode must be " + one_of(kModes) + ", got " + quoted(text_of(field)));
  }
  if (name == kDegree.name) {
    attributes->degree = value_of<int32_t>(field);
  }
  if (name == kRotaryBlocks.name) {
    attributes->rotary_blocks = value_of<int32_t>(field);
  }
  if (name == kEpsilon.name) {
    attributes->epsilon = value_of<float>(field);
  }
  if (name == kStateful.name) {
    const auto value = value_of<int32_t>(field);
    if (value != 0 && value != 1) {
      throw std::invalid_argument("stateful must be 0 or 1, got " + std::to_string(value));
    }
    attributes->stateful = value == 1;
  }
}

PluginField text_field(const KnownField& known_field, const std::string& text) {
  return {known_field.name, text.data(), known_field.type, static_cast<int32_t>(text.size())};
}

}  // namespace

NodeAttributes read_fields(Op op, const nvinfer1::PluginFieldCollection* fields) {
  if (fields == nullptr || (fields->nbFields > 0 && fields->fields == nullptr)) {
    throw std::invalid_argument("the attributes are a null pointer");
  }
  NodeAttributes attributes;
  std::set<std::string> names;
  for (int32_t i = 0; i < fields->nbFields; ++i) {
    const PluginField& field = fields->fields[i];
    const std::string name = field.name == nullptr ? "" : field.name;
    check_type(field, known(op, name));
    if (!names.insert(name).second) {
      throw std::invalid_argument("the attribute " + name + " is there twice");
    }
    read_field(name, field, &attributes.aggregation);
    if (name == kActivation.name) {
      read_activation(field, &attributes.activation);
    }
  }
  if (names.count(kMode.name) == 0) {
    throw std::invalid_argument("the attribute mode is missing: it must be " + one_of(kModes));
  }
  if (op == Op::kGated && !attributes.activation) {
    throw std::invalid_argument("the attribute gate_activation is missing: it must be " + one_of(kGateActivations));
  }
  if (const std::string error = validate(attributes); !error.empty()) {
    throw std::invalid_argument(error);
  }
  return attributes;
}

const nvinfer1::PluginFieldCollection* field_names(Op op) {
  const auto names_of = [](Op which) {
    std::vector<PluginField> names;
    for (const KnownField& field : kKnownFields) {
      if (is_of(which, field)) {
        names.emplace_back(field.name, nullptr, field.type, 1);
      }
    }
    return names;
  };
  const auto collect = [](const std::vector<PluginField>& fields) {
    return nvinfer1::PluginFieldCollection{static_cast<int32_t>(fields.size()), fields.data()};
  };
  static const std::vector<PluginField> plain = names_of(Op::kAggregation);
  static const std::vector<PluginField> gated = names_of(Op::kGated);
  static const nvinfer1::PluginFieldCollection collections[] = {collect(plain), collect(gated)};
  return &collections[static_cast<std::size_t>(op)];
}

SerializedFields::SerializedFields(const NodeAttributes& attributes)
    : form_(kForms[static_cast<std::size_t>(attributes.aggregation.form)]),
      mode_(kModes[static_cast<std::size_t>(attributes.aggregation.mode)]),
      degree_(attributes.aggregation.degree),
      rotary_blocks_(attributes.aggregation.rotary_blocks),
      epsilon_(attributes.aggregation.epsilon),
      stateful_(attributes.aggregation.stateful),
      fields_{text_field(kForm, form_),
              PluginField(kDegree.name, &degree_, kDegree.type, 1),
              text_field(kMode, mode_),
              PluginField(kRotaryBlocks.name, &rotary_blocks_, kRotaryBlocks.type, 1),
              PluginField(kEpsilon.name, &epsilon_, kEpsilon.type, 1),
              PluginField(kStateful.name, &stateful_, kStateful.type, 1)} {
  if (attributes.activation) {
    activation_ = kGateActivations[static_cast<std::size_t>(*attributes.activation)];
    fields_.push_back(text_field(kActivation, activation_));
  }
  collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

}  // namespace pom::tensorrt
