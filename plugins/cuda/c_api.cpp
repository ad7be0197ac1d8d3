#include "c_api.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "aggregate_cuda.h"
#include "enqueue.h"

namespace {

struct Described {
  pom::Problem problem;
  std::optional<pom::Gate> gate;
};

void require(const std::string& error) {
  if (!error.empty()) {
    throw std::invalid_argument(error);
  }
}

Described describe(const PomCall& call) {
  pom::Attributes attributes;
  attributes.degree = call.degree;
  attributes.rotary_blocks = call.rotary_blocks;
  attributes.epsilon = call.epsilon;
  attributes.stateful = call.stateful != 0;
  if (!pom::parse_form(call.form, &attributes.form) || !pom::parse_mode(call.mode, &attributes.mode)) {
    throw std::invalid_argument(std::string("form and mode must be the contract's words, got ") + call.form + " and " +
                                call.mode);
  }
  const auto most = static_cast<int32_t>(std::size(call.inputs));
  if (call.input_count < 0 || call.input_count > most) {
    throw std::invalid_argument("takes at most " + std::to_string(most) + " inputs, got " +
                                std::to_string(call.input_count));
  }
  std::vector<pom::TensorInfo> inputs;
  for (int32_t i = 0; i < call.input_count; ++i) {
    const PomTensor& tensor = call.inputs[i];
    if (tensor.rank < 0 || tensor.rank > static_cast<int32_t>(std::size(tensor.shape))) {
      throw std::invalid_argument("input " + std::to_string(i) + " has rank " + std::to_string(tensor.rank));
    }
    inputs.push_back({tensor.rank > 0, static_cast<pom::DataType>(tensor.type),
                      std::vector<int64_t>(tensor.shape, tensor.shape + tensor.rank)});
  }
  Described described;
  if (call.gate_activation == nullptr) {
    require(pom::describe(attributes, inputs, &described.problem));
    return described;
  }
  pom::GateActivation activation{};
  if (!pom::parse_gate_activation(call.gate_activation, &activation)) {
    throw std::invalid_argument(std::string("unknown gate activation ") + call.gate_activation);
  }
  described.gate.emplace();
  require(pom::describe_gated(attributes, activation, inputs, &described.problem, &*described.gate));
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
    const Described described = describe(*call);
    *bytes = static_cast<int64_t>(pom::cuda::workspace_bytes(described.problem, described.gate));
  });
}

extern "C" __attribute__((visibility("default"))) const char* pom_cuda_aggregate(const PomCall* call,
                                                                                 void* const* outputs, void* workspace,
                                                                                 void* stream) {
  return guard([&] {
    const Described described = describe(*call);
    std::array<const void*, std::extent_v<decltype(PomCall::inputs)>> inputs{};
    std::transform(call->inputs, call->inputs + call->input_count, inputs.begin(),
                   [](const PomTensor& tensor) { return tensor.data; });
    pom::cuda::enqueue(described.problem, described.gate, inputs.data(), outputs, workspace,
                       static_cast<cudaStream_t>(stream));
  });
}
