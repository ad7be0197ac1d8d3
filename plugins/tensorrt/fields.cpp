#include "fields.h"

#include <cstddef>
#include <cstring>
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
constexpr KnownField kVersion{"plugin_version", PluginFieldType::kCHAR, "text"};
constexpr KnownField kNamespace{"plugin_namespace", PluginFieldType::kCHAR, "text"};
constexpr std::array<KnownField, kAttributes.size()> kKnownFields{kForm,    kDegree,  kMode,     kRotaryBlocks,
                                                                  kEpsilon, kVersion, kNamespace};

// "a" or "b"; "a", "b" or "c".
template <std::size_t Size>
std::string one_of(const std::array<const char*, Size>& words) {
  std::string text;
  for (std::size_t i = 0; i < Size; ++i) {
    text += i == 0 ? "" : i + 1 == Size ? " or " : ", ";
    text += std::string("\"") + words[i] + "\"";
  }
  return text;
}

const KnownField& known(const std::string& name) {
  for (const KnownField& field : kKnownFields) {
    if (name == field.name) {
      return field;
    }
  }
  throw std::invalid_argument("unknown attribute \"" + name + "\"");
}

void check_type(const PluginField& field, const KnownField& expected) {
  const bool text = expected.type == PluginFieldType::kCHAR;
  if (field.type != expected.type || field.length < 0 || (!text && (field.length != 1 || field.data == nullptr))) {
    throw std::invalid_argument(std::string(expected.name) + " must be " + expected.type_name +
                                ", got a field of type " + std::to_string(static_cast<int32_t>(field.type)) +
                                " and length " + std::to_string(field.length));
  }
}

// A text field may or may not count a terminating NUL in its length.
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

void read_field(const std::string& name, const PluginField& field, Attributes* attributes) {
  if (name == kForm.name && !parse_form(text_of(field), &attributes->form)) {
    throw std::invalid_argument("form must be " + one_of(kForms) + ", got \"" + text_of(field) + "\"");
  }
  if (name == kMode.name && !parse_mode(text_of(field), &attributes->mode)) {
    throw std::invalid_argument("mode must be " + one_of(kModes) + ", got \"" + text_of(field) + "\"");
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
}

PluginField text_field(const KnownField& known_field, const std::string& text) {
  return {known_field.name, text.data(), known_field.type, static_cast<int32_t>(text.size())};
}

}  // namespace

Attributes read_fields(const nvinfer1::PluginFieldCollection& fields) {
  Attributes attributes;
  bool has_mode = false;
  for (int32_t i = 0; i < fields.nbFields; ++i) {
    const PluginField& field = fields.fields[i];
    const std::string name = field.name == nullptr ? "" : field.name;
    check_type(field, known(name));
    read_field(name, field, &attributes);
    has_mode = has_mode || name == kMode.name;
  }
  if (!has_mode) {
    throw std::invalid_argument("the attribute mode is missing: it must be " + one_of(kModes));
  }
  if (const std::string error = validate(attributes); !error.empty()) {
    throw std::invalid_argument(error);
  }
  return attributes;
}

const nvinfer1::PluginFieldCollection* field_names() {
  static const std::vector<PluginField> fields = [] {
    std::vector<PluginField> names;
    for (const KnownField& field : kKnownFields) {
      names.emplace_back(field.name, nullptr, field.type, 1);
    }
    return names;
  }();
  static const nvinfer1::PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
  return &collection;
}

SerializedFields::SerializedFields(const Attributes& attributes)
    : form_(kForms[static_cast<std::size_t>(attributes.form)]),
      mode_(kModes[static_cast<std::size_t>(attributes.mode)]),
      degree_(attributes.degree),
      rotary_blocks_(attributes.rotary_blocks),
      epsilon_(attributes.epsilon),
      fields_{text_field(kForm, form_), PluginField(kDegree.name, &degree_, kDegree.type, 1), text_field(kMode, mode_),
              PluginField(kRotaryBlocks.name, &rotary_blocks_, kRotaryBlocks.type, 1),
              PluginField(kEpsilon.name, &epsilon_, kEpsilon.type, 1)},
      collection_{static_cast<int32_t>(fields_.size()), fields_.data()} {}

}  // namespace pom::tensorrt
