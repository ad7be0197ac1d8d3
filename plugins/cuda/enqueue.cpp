#include "enqueue.h"

#include <cstdint>
#include <stdexcept>
#include <string>

#include "aggregate_cuda.h"

namespace pom::cuda {
namespace {

constexpr std::uintptr_t kWorkspaceAlignment = 16;

void check_pointers(const OpCall& call, const Buffers& buffers) {
  const auto& [problem, gate] = call;
  struct Pointer {
    const char* name;
    const void* value;
    bool needed;
  };
  const bool has_tokens = problem.tokens > 0;
  const bool has_output = output_tokens(problem, gate) > 0;
  const bool is_stateful = problem.attributes.stateful;
  const bool has_rotation = problem.has_rotation && has_tokens;
  for (const Pointer& pointer : {Pointer{"x", buffers.x, has_tokens},
                                 {"gate", buffers.gate, gate.has_value() && has_output},
                                 {"gate_bias", buffers.gate_bias, gate.has_value()},
                                 {"coefficients", buffers.coefficients, problem.attributes.form == Form::kPower},
                                 {"mask", buffers.mask, problem.has_mask && has_tokens},
                                 {"cos", buffers.cos, has_rotation},
                                 {"sin", buffers.sin, has_rotation},
                                 {"past_state", buffers.past_state, is_stateful},
                                 {"past_length", buffers.past_length, is_stateful},
                                 {"the output", buffers.output, has_output},
                                 {"present_state", buffers.present_state, is_stateful},
                                 {"present_length", buffers.present_length, is_stateful},
                                 {"the workspace", buffers.workspace, workspace_bytes(problem, gate) > 0}}) {
    if (pointer.needed && pointer.value == nullptr) {
      throw std::invalid_argument(std::string(pointer.name) + " is a null pointer");
    }
  }
  if (reinterpret_cast<std::uintptr_t>(buffers.workspace) % kWorkspaceAlignment != 0) {
    throw std::invalid_argument("the workspace is not aligned to " + std::to_string(kWorkspaceAlignment) + " bytes");
  }
  if (is_stateful && (buffers.present_state == buffers.past_state || buffers.present_length == buffers.past_length)) {
    throw std::invalid_argument("the present must not be written over the past, which other threads still read");
  }
}

}  // namespace

void enqueue(const OpCall& call, const void* const* inputs, void* const* outputs, void* workspace,
             cudaStream_t stream) {
  if (inputs == nullptr || outputs == nullptr) {
    throw std::invalid_argument(std::string(inputs == nullptr ? "the inputs" : "the outputs") + " are a null pointer");
  }
  const auto& [problem, gate] = call;
  Buffers buffers = bind(problem, gate.has_value(), inputs, outputs);
  buffers.workspace = workspace;
  if (is_empty(call)) {
    return;
  }
  check_pointers(call, buffers);
  if (const cudaError_t status = aggregate(problem, gate, buffers, stream); status != cudaSuccess) {
    throw std::runtime_error(std::string(cudaGetErrorName(status)) + ": " + cudaGetErrorString(status) + ", of x " +
                             written({problem.batch, problem.tokens, problem.channels}));
  }
}

}  // namespace pom::cuda
