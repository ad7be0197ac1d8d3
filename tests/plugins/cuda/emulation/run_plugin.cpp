// Runs calls through the whole life of a TensorRT plugin on the CPU: from a node's attributes to an engine, and from
// there to running contexts. See call.h.
//
// run_plugin: the outputs of all calls, each with both orders of blocks and threads, which must agree.
//
// run_plugin --faults: instead of outputs, what happens if each allocation in the plugin's functions fails in turn,
// with all that follow it, and then if each of its CUDA calls fails: lines "KIND FUNCTION: LOG", for the function that
// failed.
//
// run_plugin --misuse: no calls, see misuse.h.
#include <cuda_runtime_api.h>

#include <array>
#include <cstdio>
#include <functional>
#include <stdexcept>
#include <string>

#include "call.h"
#include "cuda_emulation.h"
#include "faults.h"
#include "misuse.h"
#include "tensorrt_double.h"

namespace {

using pom::cuda::emulation::Order;
using pom::test::Buffer;
using pom::test::Call;
using pom::test::Context;
using pom::test::Engine;
using pom::test::Node;
using pom::test::Outputs;

constexpr int64_t kGrowth = 3;

// The shapes of a call with an empty batch.
Node without_batch(const Call& call) {
  Call nothing;
  nothing.problem = call.problem;
  nothing.gate = call.gate;
  nothing.problem.batch = 0;
  nothing.problem.mask_batch = nothing.problem.rotation_batch = 1;
  return pom::test::node_of(nothing);
}

std::string run_engine(const Call& call, int64_t growth) {
  const Node node = pom::test::node_of(call);
  Engine engine = pom::test::build(node, growth);
  auto loaded = pom::test::load(&engine);
  Context context(loaded.get());
  Context other(loaded.get());
  loaded.reset();
  engine.fields = {};

  const Outputs outputs(call);
  const Buffer workspace(engine.workspace_bytes, 0);
  const std::string untouched = outputs.text();
  context.set_shapes(node);
  // A second context has different shapes.
  other.set_shapes(without_batch(call));
  other.enqueue(call.pointers(), outputs.pointers(), workspace.data());
  if (outputs.text() != untouched) {
    throw std::runtime_error("a batch of nothing wrote something");
  }
  context.enqueue(call.pointers(), outputs.pointers(), workspace.data());
  outputs.check_guards();
  workspace.check_guard();
  call.check_guards();
  return outputs.text();
}

std::string run(const Call& call) {
  pom::cuda::emulation::set_order(Order::kForward);
  std::string exact = run_engine(call, 1);
  pom::cuda::emulation::set_order(Order::kShuffled);
  if (exact != run_engine(call, kGrowth)) {
    throw std::runtime_error("an engine for larger shapes, or another order of threads, changes the output");
  }
  return exact;
}

// The function of the plugin that failed, and what the plugin logged; both empty if all went well.
struct Outcome {
  std::array<char, 64> entry{};
  std::array<char, 1024> log{};
};

Outcome run_to_the_fault(const Call& call) {
  Outcome outcome;
  const int64_t living = pom::test::faults::live_allocations();
  try {
    run_engine(call, 1);
  } catch (const pom::test::Refused& refused) {
    std::snprintf(outcome.entry.data(), outcome.entry.size(), "%s", refused.what());
  }
  std::snprintf(outcome.log.data(), outcome.log.size(), "%s", pom::test::take_log());
  if (pom::test::faults::live_allocations() != living) {
    throw std::runtime_error(std::string("allocations were not freed: ") + outcome.log.data());
  }
  return outcome;
}

// Lets one more operation succeed each time, until nothing fails any more.
std::string run_with_each_fault(const Call& call, const std::string& kind, const std::function<void(int32_t)>& fail,
                                const std::function<bool()>& failed) {
  std::string lines;
  for (int32_t number = 0;; ++number) {
    fail(number);
    const Outcome outcome = run_to_the_fault(call);
    const bool refused = outcome.entry[0] != '\0';
    if (refused != failed()) {
      throw std::runtime_error(kind + " " + std::to_string(number) + " failed, and no entry said so");
    }
    if (!refused) {
      fail(-1);
      return lines;
    }
    lines += kind + " " + outcome.entry.data() + ": " + outcome.log.data() + "\n";
  }
}

std::string run_with_faults(const Call& call) {
  namespace faults = pom::test::faults;
  namespace emulation = pom::cuda::emulation;
  run(call);  // so that whatever is created only once exists
  return run_with_each_fault(call, "allocation", faults::fail_allocation, faults::allocation_failed) +
         run_with_each_fault(call, "cuda", emulation::fail_call, emulation::call_failed);
}

}  // namespace

int main(int count, char** arguments) {
  const std::string mode = count > 1 ? arguments[1] : "";
  if (mode == "--misuse") {
    return pom::test::try_misuse();
  }
  return mode == "--faults" ? pom::test::serve_calls(run_with_faults, "") : pom::test::serve_calls(run, "\n");
}
