#include "enqueue.h"

#include <stdexcept>
#include <string>

#include "aggregate_cuda.h"

namespace pom::cuda {
namespace {

void require_pointers(const Problem& problem, const std::optional<Gate>& gate, const Buffers& buffers) {
  struct Pointer {
    const char* name;
    const void* value;
    bool needed;
  };
  const bool has_tokens = problem.tokens > 0;
  const bool has_rotation = problem.has_rotation && has_tokens;
  for (const Pointer& pointer : {Pointer{"x", buffers.x, has_tokens},
                                 {"gate", buffers.gate, gate.has_value()},
                                 {"gate_bias", buffers.gate_bias, gate.has_value()},
                                 {"coefficients", buffers.coefficients, problem.attributes.form == Form::kPower},
                                 {"mask", buffers.mask, problem.has_mask && has_tokens},
                                 {"cos", buffers.cos, has_rotation},
                                 {"sin", buffers.sin, has_rotation},
                                 {"the output", buffers.output, true},
                                 {"the workspace", buffers.workspace, workspace_bytes(problem, gate) > 0}}) {
    if (pointer.needed && pointer.value == nullptr) {
      throw std::invalid_argument(std::string(pointer.name) + " is a null pointer");
    }
  }
}

}  // namespace

void enqueue(const Problem& problem, const std::optional<Gate>& gate, const void* const* inputs, void* output,
             void* workspace, cudaStream_t stream) {
  if (inputs == nullptr) {
    throw std::invalid_argument("the inputs are a null pointer");
  }
  Buffers buffers = bind_inputs(problem, gate.has_value(), inputs);
  buffers.output = output;
  buffers.workspace = workspace;
  if (is_empty(problem, gate)) {
    return;
  }
  require_pointers(problem, gate, buffers);
  if (const cudaError_t status = aggregate(problem, gate, buffers, stream); status != cudaSuccess) {
    throw std::runtime_error(std::string(cudaGetErrorName(status)) + ": " + cudaGetErrorString(status));
  }
}

}  // namespace pom::cuda
