// Runs calls of pom::cuda::aggregate, with and without a gate, on the CPU: see call.h. Each runs with both orders of
// blocks and threads, which must agree; outputs and workspace start as NaN.
#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

#include "aggregate_cuda.h"
#include "call.h"
#include "cuda_emulation.h"

namespace {

using pom::cuda::emulation::Order;
using pom::test::Buffer;
using pom::test::Call;
using pom::test::Outputs;

std::string run_once(const Call& call, Order order) {
  const Outputs outputs(call);
  const Buffer workspace(pom::cuda::workspace_bytes(call.problem, call.gate), 0);
  pom::cuda::Buffers buffers =
      pom::cuda::bind(call.problem, call.gate.has_value(), call.pointers().data(), outputs.pointers().data());
  buffers.workspace = workspace.data();
  pom::cuda::emulation::set_order(order);
  if (const cudaError_t status = pom::cuda::aggregate(call.problem, call.gate, buffers, nullptr);
      status != cudaSuccess) {
    throw std::runtime_error("aggregate returned " + std::to_string(status));
  }
  outputs.check_guards();
  workspace.check_guard();
  return outputs.text();
}

std::string run(const Call& call) {
  pom::cuda::emulation::skip_barrier(call.skipped_barrier);
  std::string forward = run_once(call, Order::kForward);
  if (forward != run_once(call, Order::kShuffled)) {
    throw std::runtime_error("the order of blocks and threads changes the output");
  }
  call.check_guards();
  return forward;
}

}  // namespace

int main() { return pom::test::serve_calls(run, "\n"); }
