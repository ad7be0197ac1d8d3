#include "pom/aggregate.h"

#include <cstddef>
#include <limits>

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

std::string number(int64_t value) { return std::to_string(value); }

// False where a tensor's element count would overflow int64.
bool countable(int64_t batch, int64_t tokens, int64_t channels) {
  constexpr int64_t limit = std::numeric_limits<int64_t>::max() / 8;
  if (batch == 0 || tokens == 0) {
    return true;
  }
  return batch <= limit / tokens && batch * tokens <= limit / channels;
}

}  // namespace

bool parse_form(const std::string& text, Form* form) { return parse(text, kForms, form); }
bool parse_mode(const std::string& text, Mode* mode) { return parse(text, kModes, mode); }

std::string validate(const Attributes& attributes) {
  if (attributes.rotary_blocks != 1) {
    return "rotary_blocks must be 1, got " + number(attributes.rotary_blocks);
  }
  if (!(attributes.epsilon >= 0.0F && attributes.epsilon <= std::numeric_limits<float>::max())) {
    return "epsilon must be finite and not negative, got " + std::to_string(attributes.epsilon);
  }
  return {};
}

std::string validate(const Problem& problem) {
  if (std::string error = validate(problem.attributes); !error.empty()) {
    return error;
  }
  if (problem.batch < 0 || problem.tokens < 0 || problem.channels < 1) {
    return "x must be (batch, tokens, channels) with at least one channel, got (" + number(problem.batch) + ", " +
           number(problem.tokens) + ", " + number(problem.channels) + ")";
  }
  if (!countable(problem.batch, problem.tokens, problem.channels)) {
    return "x is too large: " + number(problem.batch) + " x " + number(problem.tokens) + " x " +
           number(problem.channels) + " elements";
  }
  if (problem.degree < kMinDegree || problem.degree > kMaxDegree) {
    return "coefficients must have " + number(kMinDegree) + " to " + number(kMaxDegree) + " columns, got " +
           number(problem.degree);
  }
  if (problem.data_type == DataType::kBool) {
    return "x must be float32, float16 or bfloat16, got bool";
  }
  if (problem.coefficient_type != DataType::kFloat32 && problem.coefficient_type != problem.data_type) {
    return "coefficients must be float32 or of x's type";
  }
  if (!problem.has_mask) {
    return {};
  }
  if (problem.attributes.mode == Mode::kFeatures) {
    return "mode \"features\" takes no mask";
  }
  if (problem.mask_type != DataType::kBool && problem.mask_type != problem.data_type) {
    return "mask must be bool or of x's type";
  }
  if (problem.mask_batch != 1 && problem.mask_batch != problem.batch) {
    return "mask must have 1 or " + number(problem.batch) + " rows, got " + number(problem.mask_batch);
  }
  return {};
}

}  // namespace pom
