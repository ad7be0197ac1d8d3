// A call of the op: its attributes, the shapes and types of its tensors, and the validation that every adapter (ONNX
// Runtime, TensorRT) calls. Raw pointers and integers only: no framework, no CUDA.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pom/contract.h"

namespace pom {

enum class DataType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kBool = 3, kInt64 = 4 };

// Positions in kInputs, and in the pointers that an adapter passes.
enum Input : int32_t { kX = 0, kCoefficients = 1, kMask = 2, kCos = 3, kSin = 4, kPastState = 5, kPastLength = 6 };

// Positions in kOutputs and kGatedOutputs; the last two exist if the op is stateful.
enum OutputPosition : int32_t { kY = 0, kPresentState = 1, kPresentLength = 2 };

// Rows of a state: the running sum, and what it has lost to rounding.
inline constexpr int64_t kStateRows = 2;

struct Attributes {
  Form form = Form::kPower;
  int32_t degree = 0;  // form product only
  Mode mode = Mode::kMean;
  int32_t rotary_blocks = 1;
  float epsilon = 0.0F;
  bool stateful = false;
};

// Shapes and types of one call; all tensors are contiguous.
//   x             (batch, tokens, channels)
//   coefficients  (channels, degree), form power only
//   mask          (mask_batch, tokens), mask_batch 1 or batch
//   cos, sin      (rotation_batch, tokens, channels / 2), rotation_batch 1 or batch
//   past_state    (batch, kStateRows, channels) float32, if the op is stateful; present_state too
//   past_length   (batch) int64, if the op is stateful; present_length too
//   y             (batch, output_tokens(), channels)
struct Problem {
  Attributes attributes;
  int64_t batch = 0;
  int64_t tokens = 0;
  int64_t channels = 0;
  int64_t degree = 0;
  bool has_mask = false;
  int64_t mask_batch = 0;
  bool has_rotation = false;
  int64_t rotation_batch = 0;
  DataType data_type = DataType::kFloat32;         // of x and y
  DataType coefficient_type = DataType::kFloat32;  // kFloat32 or data_type
  DataType mask_type = DataType::kBool;            // kBool or data_type; kBool if the op is stateful
  DataType rotation_type = DataType::kFloat32;     // kFloat32 or data_type

  [[nodiscard]] int64_t output_tokens() const { return attributes.mode == Mode::kMean ? 1 : tokens; }
  // The channels of one factor in form product; all of them in form power.
  [[nodiscard]] int64_t chunk_channels() const {
    return attributes.form == Form::kProduct ? channels / degree : channels;
  }
};

// An input as an adapter sees it. A placeholder of rank 1, and an input that is not given, count as absent.
struct TensorInfo {
  bool given = false;
  DataType type = DataType::kFloat32;
  std::vector<int64_t> shape;
};

// Parses an attribute's text; returns false if it is not one of the contract's words.
bool parse_form(const std::string& text, Form* form);
bool parse_mode(const std::string& text, Mode* mode);

// C callers may pass any number as a type.
[[nodiscard]] bool is_known(DataType type);
[[nodiscard]] const char* name_of(DataType type);

// Foreign text for an error message: in quotes, on one line, and shortened.
[[nodiscard]] std::string quoted(const std::string& text);

// A shape for an error message.
[[nodiscard]] std::string written(const std::vector<int64_t>& shape);

// Checks attributes alone (at node creation), or a whole call. An empty text means valid; otherwise, one line says what
// is wrong and names the value.
[[nodiscard]] std::string validate(const Attributes& attributes);
[[nodiscard]] std::string validate(const Problem& problem);

// The same for a single property, before anything is created for it: the columns of coefficients; sizes, whose product
// must be countable; the lengths of a stateful problem's past, to which this call's tokens are added.
[[nodiscard]] std::string validate_columns(int64_t columns);
[[nodiscard]] std::string validate_size(const char* tensor, const std::vector<int64_t>& shape);
[[nodiscard]] std::string validate_lengths(const Problem& problem, const int64_t* past_length);

// Fills a problem from its inputs, in the order of kInputs (trailing ones may be omitted), and validates it. An empty
// text means success.
[[nodiscard]] std::string describe(const Attributes& attributes, const std::vector<TensorInfo>& inputs,
                                   Problem* problem);

}  // namespace pom
