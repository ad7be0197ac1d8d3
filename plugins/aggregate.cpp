#include "pom/aggregate.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdio>
#include <limits>
#include <stdexcept>

namespace pom {
namespace {

template <typename Enum, std::size_t Size>
bool parse(const std::string& text, const std::array<const char*, Size>& words, Enum* value) {
  for (std::size_t i = 0; i < Size; ++i) {
    if (text == words[i]) {
      *value = static_cast<Enum>(i);
      return true;
    }
  }
  return false;
}

// Without tokens, x may declare any other sizes, and its means have as many values.
constexpr int64_t kMaxMeansOfNothing = int64_t{1} << 27;
constexpr std::array<const char*, 5> kTypeNames{"float32", "float16", "bfloat16", "bool", "int64"};

std::string number(int64_t value) { return std::to_string(value); }

std::string real_number(float value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", static_cast<double>(value));
  return text;
}

bool is_float(DataType type) {
  return type == DataType::kFloat32 || type == DataType::kFloat16 || type == DataType::kBFloat16;
}

bool has_degree(int64_t degree) { return degree >= kMinDegree && degree <= kMaxDegree; }
std::string degree_range() { return number(kMinDegree) + " to " + number(kMaxDegree); }

// Checks that an input is float32 or of x's type.
std::string check_float(Input input, DataType type, DataType x_type) {
  if (type == DataType::kFloat32 || type == x_type) {
    return {};
  }
  return std::string(kInputs[input]) + " must be float32 or of x's type (" + name_of(x_type) + "), got " +
         name_of(type);
}

std::string check_rows(Input input, int64_t rows, int64_t batch) {
  if (rows == 1 || rows == batch) {
    return {};
  }
  return std::string(kInputs[input]) + " must have 1 or " + number(batch) + " rows, got " + number(rows);
}

std::string validate_polynomial(const Problem& problem) {
  if (problem.attributes.form == Form::kProduct) {
    if (problem.degree != problem.attributes.degree) {
      return "degree must be that of the attribute";
    }
    if (problem.channels % problem.degree != 0) {
      return "x must have a multiple of degree " + number(problem.degree) + " channels, got " +
             number(problem.channels);
    }
    return {};
  }
  if (std::string error = validate_columns(problem.degree); !error.empty()) {
    return error;
  }
  return check_float(kCoefficients, problem.coefficient_type, problem.data_type);
}

std::string validate_mask(const Problem& problem) {
  if (problem.attributes.mode == Mode::kFeatures) {
    return "mode \"features\" takes no mask";
  }
  if (problem.attributes.stateful && problem.mask_type != DataType::kBool) {
    return std::string("a state counts whole tokens: with stateful 1 mask must be bool, got ") +
           name_of(problem.mask_type);
  }
  if (problem.mask_type != DataType::kBool && problem.mask_type != problem.data_type) {
    return std::string("mask must be bool or of x's type (") + name_of(problem.data_type) + "), got " +
           name_of(problem.mask_type);
  }
  return check_rows(kMask, problem.mask_batch, problem.batch);
}

std::string validate_rotation(const Problem& problem) {
  if (problem.attributes.form == Form::kProduct) {
    return "form \"product\" takes no cos and sin";
  }
  const int64_t multiple = int64_t{2} * problem.attributes.rotary_blocks;
  if (problem.channels % multiple != 0) {
    return "a rotation in " + number(problem.attributes.rotary_blocks) + " blocks needs a multiple of " +
           number(multiple) + " channels, got " + number(problem.channels);
  }
  if (std::string error = check_float(kCos, problem.rotation_type, problem.data_type); !error.empty()) {
    return error;
  }
  return check_rows(kCos, problem.rotation_batch, problem.batch);
}

// The checks of inputs that a Problem cannot express; they throw what describe() returns.
class Description {
 public:
  Description(const Attributes& attributes, const std::vector<TensorInfo>& inputs) : inputs_(inputs) {
    problem.attributes = attributes;
    check_count();
    read_x();
    read_polynomial();
    read_mask();
    read_rotation();
    check_state();
  }

  Problem problem;

 private:
  [[nodiscard]] bool is_given(Input input) const {
    const auto index = static_cast<std::size_t>(input);
    return index < inputs_.size() && inputs_[index].given;
  }
  [[nodiscard]] bool has(Input input) const { return is_given(input) && !is_placeholder(at(input)); }
  [[nodiscard]] const TensorInfo& at(Input input) const { return inputs_[static_cast<std::size_t>(input)]; }
  [[nodiscard]] static bool is_placeholder(const TensorInfo& tensor) {
    return tensor.shape.size() == 1 && tensor.shape[0] == 1;
  }

  [[noreturn]] void fail(Input input, const std::string& expected) const {
    throw std::invalid_argument(std::string(kInputs[input]) + " must be " + expected + ", got shape " +
                                written(at(input).shape));
  }

  void check_count() const {
    if (inputs_.size() < kRequiredInputs || inputs_.size() > kInputs.size()) {
      throw std::invalid_argument("takes " + number(kRequiredInputs) + " to " +
                                  number(static_cast<int64_t>(kInputs.size())) + " inputs, got " +
                                  number(static_cast<int64_t>(inputs_.size())));
    }
  }

  void read_x() {
    const TensorInfo& x = at(kX);
    if (!x.given || x.shape.size() != 3) {
      fail(kX, "(batch, tokens, channels)");
    }
    problem.batch = x.shape[0];
    problem.tokens = x.shape[1];
    problem.channels = x.shape[2];
    problem.data_type = x.type;
  }

  void read_polynomial() {
    const TensorInfo& coefficients = at(kCoefficients);
    if (problem.attributes.form == Form::kProduct) {
      if (has(kCoefficients)) {
        fail(kCoefficients, "a placeholder of shape (1) in form \"product\"");
      }
      problem.degree = problem.attributes.degree;
      return;
    }
    if (!coefficients.given || coefficients.shape.size() != 2 || coefficients.shape[0] != problem.channels) {
      fail(kCoefficients,
           "(" + number(problem.channels) + ", degree) for x's " + number(problem.channels) + " channels");
    }
    problem.degree = coefficients.shape[1];
    problem.coefficient_type = coefficients.type;
  }

  void read_mask() {
    problem.has_mask = has(kMask);
    if (!problem.has_mask) {
      return;
    }
    const TensorInfo& mask = at(kMask);
    if (mask.shape.size() != 2 || mask.shape[1] != problem.tokens) {
      fail(kMask, "(1 or " + number(problem.batch) + ", " + number(problem.tokens) + ") for x's batch and tokens");
    }
    problem.mask_batch = mask.shape[0];
    problem.mask_type = mask.type;
  }

  void read_rotation() {
    problem.has_rotation = has(kCos);
    if (has(kCos) != has(kSin)) {
      throw std::invalid_argument("cos and sin must be given together");
    }
    if (!problem.has_rotation) {
      return;
    }
    const std::vector<int64_t>& cos = at(kCos).shape;
    const bool batched = cos.size() == 3;
    const std::vector<int64_t> row(cos.begin() + (batched ? 1 : 0), cos.end());
    if (row != std::vector<int64_t>{problem.tokens, problem.channels / 2}) {
      const std::string table = number(problem.tokens) + ", " + number(problem.channels / 2) + ")";
      fail(kCos, "(" + table + " or (" + number(problem.batch) + ", " + table + " for x's tokens and channels");
    }
    if (at(kSin).shape != cos || at(kSin).type != at(kCos).type) {
      fail(kSin, "of cos's type and shape " + written(cos));
    }
    problem.rotation_batch = batched ? cos[0] : 1;
    problem.rotation_type = at(kCos).type;
  }

  void check_state() const {
    if (!problem.attributes.stateful) {
      if (is_given(kPastState) || is_given(kPastLength)) {
        throw std::invalid_argument("past_state and past_length go with stateful 1");
      }
      return;
    }
    check_past(kPastState, DataType::kFloat32, {problem.batch, kStateRows, problem.channels});
    check_past(kPastLength, DataType::kInt64, {problem.batch});
  }

  void check_past(Input input, DataType type, const std::vector<int64_t>& shape) const {
    const std::string name = kInputs[static_cast<std::size_t>(input)];
    if (!is_given(input)) {
      throw std::invalid_argument(name + " is missing, which stateful 1 needs");
    }
    if (at(input).shape != shape) {
      fail(input, written(shape) + " for x's batch and channels");
    }
    if (at(input).type != type) {
      throw std::invalid_argument(name + " must be " + name_of(type) + ", got " + name_of(at(input).type));
    }
  }

  const std::vector<TensorInfo>& inputs_;
};

}  // namespace

bool parse_form(const std::string& text, Form* form) { return parse(text, kForms, form); }
bool parse_mode(const std::string& text, Mode* mode) { return parse(text, kModes, mode); }

bool is_known(DataType type) { return static_cast<std::size_t>(type) < kTypeNames.size(); }
const char* name_of(DataType type) {
  return is_known(type) ? kTypeNames[static_cast<std::size_t>(type)] : "a type that the op does not know";
}

std::string quoted(const std::string& text) {
  constexpr std::size_t kMost = 60;
  std::string shown;
  for (const char letter : text.substr(0, kMost)) {
    shown += letter >= ' ' && letter <= '~' ? letter : '?';
  }
  return '"' + shown + (text.size() > kMost ? "...\"" : "\"");
}

std::string written(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t size : shape) {
    text += (text.empty() ? "" : ", ") + number(size);
  }
  return "(" + text + ")";
}

std::string validate(const Attributes& attributes) {
  if (attributes.form == Form::kProduct && !has_degree(attributes.degree)) {
    return "form \"product\" needs a degree of " + degree_range() + ", got " + number(attributes.degree);
  }
  if (attributes.form == Form::kPower && attributes.degree != 0) {
    return "degree belongs to form \"product\" and must be 0 in form \"power\", got " + number(attributes.degree);
  }
  if (attributes.rotary_blocks < 1 || attributes.rotary_blocks > kMaxRotaryBlocks) {
    return "rotary_blocks must be 1 or " + number(kMaxRotaryBlocks) + ", got " + number(attributes.rotary_blocks);
  }
  if (!(attributes.epsilon >= 0.0F && attributes.epsilon <= std::numeric_limits<float>::max())) {
    return "epsilon must be finite and not negative, got " + real_number(attributes.epsilon);
  }
  if (attributes.stateful && attributes.mode == Mode::kFeatures) {
    return "mode \"features\" sums nothing and has no state: stateful must be 0";
  }
  return {};
}

std::string validate_columns(int64_t columns) {
  return has_degree(columns) ? "" : "coefficients must have " + degree_range() + " columns, got " + number(columns);
}

std::string validate_size(const char* tensor, const std::vector<int64_t>& shape) {
  // So that the size in bytes, and a few times as much for a call's workspace, still fits an int64.
  constexpr int64_t kMost = int64_t{1} << 56;
  int64_t elements = 1;
  for (const int64_t size : shape) {
    const int64_t each = std::max<int64_t>(size, 1);
    if (each > kMost / elements) {
      return std::string(tensor) + " is too large: " + written(shape);
    }
    elements *= each;
  }
  return {};
}

std::string validate_lengths(const Problem& problem, const int64_t* past_length) {
  const int64_t most = std::numeric_limits<int64_t>::max() - problem.tokens;
  for (int64_t row = 0; row < problem.batch; ++row) {
    if (past_length[row] < 0 || past_length[row] > most) {
      return "past_length must be 0 to " + number(most) + " where " + number(problem.tokens) +
             " tokens are added, got " + number(past_length[row]);
    }
  }
  return {};
}

std::string validate(const Problem& problem) {
  if (std::string error = validate(problem.attributes); !error.empty()) {
    return error;
  }
  if (problem.batch < 0 || problem.tokens < 0 || problem.channels < 1) {
    return "x must be (batch, tokens, channels) with at least one channel, got " +
           written({problem.batch, problem.tokens, problem.channels});
  }
  // Without tokens, a mean still has one row, and a state two.
  const int64_t rows = std::max(problem.tokens, problem.attributes.stateful ? kStateRows : 1);
  if (std::string error = validate_size("x", {problem.batch, rows, problem.channels}); !error.empty()) {
    return error;
  }
  if (const int64_t values = problem.batch * problem.channels; problem.attributes.mode == Mode::kMean &&
                                                               !problem.attributes.stateful && problem.tokens == 0 &&
                                                               values > kMaxMeansOfNothing) {
    return "x has no tokens, and their means would be " + number(values) + " zeros, more than " +
           number(kMaxMeansOfNothing);
  }
  if (!is_float(problem.data_type)) {
    return std::string("x must be float32, float16 or bfloat16, got ") + name_of(problem.data_type);
  }
  std::string error = validate_polynomial(problem);
  if (error.empty() && problem.has_mask) {
    error = validate_mask(problem);
  }
  if (error.empty() && problem.has_rotation) {
    error = validate_rotation(problem);
  }
  return error;
}

std::string describe(const Attributes& attributes, const std::vector<TensorInfo>& inputs, Problem* problem) {
  try {
    *problem = Description(attributes, inputs).problem;
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return validate(*problem);
}

}  // namespace pom
