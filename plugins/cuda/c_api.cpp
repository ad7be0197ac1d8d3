#include "c_api.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "aggregate_cuda.h"
#include "enqueue.h"
#include "pom/call.h"

namespace {

// Reads a bit further than the longest of the contract's words at most, in case a text has no end.
std::string word(const char* name, const char* text) {
  constexpr std::size_t kMost = 32;
  if (text == nullptr) {
    throw std::invalid_argument(std::string(name) + " is a null pointer");
  }
  return {text, strnlen(text, kMost)};
}

// Parses text with `parse` into one of the contract's words.
template <typename Value>
Value one_of(const char* name, const char* text, bool (*parse)(const std::string&, Value*)) {
  Value value{};
  if (!parse(word(name, text), &value)) {
    throw std::invalid_argument(std::string(name) + " must be one of the contract's words, got " +
                                pom::quoted(word(name, text)));
  }
  return value;
}

pom::TensorInfo info_of(const PomTensor& tensor, const std::string& name) {
  if (tensor.rank < 0 || tensor.rank > static_cast<int32_t>(std::size(tensor.shape))) {
    throw std::invalid_argument(name + " has rank " + std::to_string(tensor.rank) + ", which is not 0 to 3");
  }
  const auto type = static_cast<pom::DataType>(tensor.type);
  if (!pom::is_known(type)) {
    throw std::invalid_argument(name + " has data type " + std::to_string(tensor.type) + ", which is not 0 to 4");
  }
  return {tensor.rank > 0, type, std::vector<int64_t>(tensor.shape, tensor.shape + tensor.rank)};
}

pom::Attributes attributes_of(const PomCall& call) {
  if (call.stateful != 0 && call.stateful != 1) {
    throw std::invalid_argument("stateful must be 0 or 1, got " + std::to_string(call.stateful));
  }
  pom::Attributes attributes;
  attributes.form = one_of("form", call.form, pom::parse_form);
  attributes.mode = one_of("mode", call.mode, pom::parse_mode);
  attributes.degree = call.degree;
  attributes.rotary_blocks = call.rotary_blocks;
  attributes.epsilon = call.epsilon;
  attributes.stateful = call.stateful == 1;
  return attributes;
}

std::vector<pom::TensorInfo> inputs_of(const PomCall& call) {
  const bool gated = call.gate_activation != nullptr;
  const std::size_t most = gated ? pom::kGatedInputs.size() : pom::kInputs.size();
  if (call.input_count < 0 || static_cast<std::size_t>(call.input_count) > most) {
    throw std::invalid_argument("takes at most " + std::to_string(most) + " inputs, got " +
                                std::to_string(call.input_count));
  }
  std::vector<pom::TensorInfo> inputs;
  for (std::size_t i = 0; i < static_cast<std::size_t>(call.input_count); ++i) {
    inputs.push_back(info_of(call.inputs[i], gated ? pom::kGatedInputs[i] : pom::kInputs[i]));
  }
  return inputs;
}

pom::OpCall describe(const PomCall* call) {
  if (call == nullptr) {
    throw std::invalid_argument("the call is a null pointer");
  }
  pom::OpAttributes attributes{attributes_of(*call), {}};
  const std::vector<pom::TensorInfo> inputs = inputs_of(*call);
  if (call->gate_activation != nullptr) {
    attributes.activation = one_of("gate_activation", call->gate_activation, pom::parse_gate_activation);
  }
  pom::OpCall described;
  if (const std::string error = pom::describe(attributes, inputs, &described); !error.empty()) {
    throw std::invalid_argument(error);
  }
  return described;
}

template <typename Body>
const char* guard(const Body& body) {
  static thread_local std::string error;
  try {
    body();
    return nullptr;
  } catch (const std::exception& caught) {
    error = caught.what();
    return error.c_str();
  }
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const char* pom_cuda_workspace_bytes(const PomCall* call,
                                                                                       int64_t* bytes) {
  return guard([&] {
    const pom::OpCall described = describe(call);
    if (bytes == nullptr) {
      throw std::invalid_argument("the place for the workspace's size is a null pointer");
    }
    *bytes = static_cast<int64_t>(pom::cuda::workspace_bytes(described.problem, described.gate));
  });
}

extern "C" __attribute__((visibility("default"))) const char* pom_cuda_aggregate(const PomCall* call,
                                                                                 void* const* outputs, void* workspace,
                                                                                 void* stream) {
  return guard([&] {
    const pom::OpCall described = describe(call);
    std::array<const void*, std::extent_v<decltype(PomCall::inputs)>> inputs{};
    std::transform(call->inputs, call->inputs + call->input_count, inputs.begin(),
                   [](const PomTensor& tensor) { return tensor.data; });
    pom::cuda::enqueue(described, inputs.data(), outputs, workspace, static_cast<cudaStream_t>(stream));
  });
}
