// What one call of the op is: its attributes, the shapes and types of its tensors, and the one validation
// that every adapter (ONNX Runtime, TensorRT) calls. Raw pointers and integers only: no framework, no CUDA.
#pragma once

#include <cstdint>
#include <string>

#include "pom/contract.h"

namespace pom {

enum class DataType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kBool = 3 };

struct Attributes {
  Form form = Form::kPower;
  Mode mode = Mode::kMean;
  int32_t rotary_blocks = 1;
  float epsilon = 0.0F;
};

// Shapes and types of one call. x is (batch, tokens, channels), coefficients (channels, degree), mask
// (mask_batch, tokens) with mask_batch 1 or batch, y (batch, output_tokens(), channels); all contiguous.
struct Problem {
  Attributes attributes;
  int64_t batch = 0;
  int64_t tokens = 0;
  int64_t channels = 0;
  int64_t degree = 0;
  bool has_mask = false;
  int64_t mask_batch = 0;
  DataType data_type = DataType::kFloat32;         // of x and y
  DataType coefficient_type = DataType::kFloat32;  // kFloat32 or data_type
  DataType mask_type = DataType::kBool;            // kBool or data_type

  [[nodiscard]] int64_t output_tokens() const { return attributes.mode == Mode::kMean ? 1 : tokens; }
};

// Parse an attribute's text; false when it is not one of the contract's words.
bool parse_form(const std::string& text, Form* form);
bool parse_mode(const std::string& text, Mode* mode);

// Check attributes alone (at node creation), or a whole call. Empty text: valid. Otherwise one line that says what is
// wrong and the value seen.
[[nodiscard]] std::string validate(const Attributes& attributes);
[[nodiscard]] std::string validate(const Problem& problem);

}  // namespace pom
