#include "misuse.h"

#include <array>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "call.h"
#include "tensorrt_double.h"

namespace pom::test {
namespace {

using nvinfer1::DataType;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IPluginV3;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorRTPhase;
using Plugin = std::unique_ptr<IPluginV3>;

// A mean over masked tokens; each test below breaks one part of it.
Call good_call() {
  Call call;
  call.problem.batch = 2;
  call.problem.tokens = 5;
  call.problem.channels = 4;
  call.problem.degree = 3;
  call.problem.has_mask = true;
  call.problem.mask_batch = 2;
  return call;
}

Call stateful_call() {
  Call call = good_call();
  call.problem.attributes.stateful = true;
  return call;
}

Plugin created(Node* node) {
  return Plugin(creator_of(node->op)->createPlugin("node", node->fields.collection(), TensorRTPhase::kBUILD));
}

// The builder's view of a node with these tensors: creator, plugin interfaces, and descriptions to damage.
struct Build {
  Node node;
  Plugin plugin = created(&node);
  nvinfer1::IPluginV3OneBuild* builder =
      capability_of<nvinfer1::IPluginV3OneBuild>(plugin.get(), PluginCapabilityType::kBUILD);
  std::vector<DynamicPluginTensorDesc> tensors;

  explicit Build(const Call& call = good_call()) : node(node_of(call)) {
    for (const PluginTensorDesc& tensor : node.tensors) {
      tensors.push_back({tensor, tensor.dims, tensor.dims, tensor.dims});
    }
  }

  bool configure(const DynamicPluginTensorDesc* inputs, int32_t count) const {
    return builder->configurePlugin(inputs, count, tensors.data() + node.input_count(), node.outputs) == 0;
  }
  bool configure() const { return configure(tensors.data(), node.input_count()); }
  bool supports(int32_t position) const {
    return builder->supportsFormatCombination(position, tensors.data(), node.input_count(), node.outputs);
  }
};

struct StatefulBuild : Build {
  StatefulBuild() : Build(stateful_call()) {}
};

// The runtime's view of the same node.
struct Run {
  Node node;
  Plugin plugin = created(&node);
  nvinfer1::IPluginV3OneRuntime* runtime =
      capability_of<nvinfer1::IPluginV3OneRuntime>(plugin.get(), PluginCapabilityType::kRUNTIME);
  alignas(16) std::array<float, 64> memory{};
  std::array<float, 64> output{};
  std::vector<const void*> inputs;
  std::vector<void*> outputs;
  void* workspace = memory.data();

  explicit Run(const Call& call = good_call()) : node(node_of(call)) {
    inputs.assign(static_cast<std::size_t>(node.input_count()), memory.data());
    outputs.assign(static_cast<std::size_t>(node.outputs), output.data());
  }

  [[nodiscard]] const PluginTensorDesc* output_descs() const { return node.tensors.data() + node.input_count(); }
  bool set_shapes() const {
    return runtime->onShapeChange(node.tensors.data(), node.input_count(), output_descs(), node.outputs) == 0;
  }
  bool enqueue() const {
    return runtime->enqueue(node.tensors.data(), output_descs(), inputs.empty() ? nullptr : inputs.data(),
                            outputs.empty() ? nullptr : outputs.data(), workspace, nullptr) == 0;
  }
};

struct StatefulRun : Run {
  StatefulRun() : Run(stateful_call()) {}
};

bool create(const std::vector<PluginField>& fields) {
  const nvinfer1::PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
  return Plugin(creator_of(kOpName)->createPlugin("node", &collection, TensorRTPhase::kBUILD)) != nullptr;
}

bool create(const nvinfer1::PluginFieldCollection* fields) {
  return Plugin(creator_of(kOpName)->createPlugin(nullptr, fields, TensorRTPhase::kBUILD)) != nullptr;
}

// Returns a function that damages a good state and returns whether `use` accepts it.
template <typename State>
std::function<bool()> damaged(void (*damage)(State*), bool (*use)(const State&)) {
  return [=] {
    State state;
    damage(&state);
    return use(state);
  };
}

template <typename State = Build, typename Damage>
std::function<bool()> configured(Damage damage) {
  return damaged<State>(damage, [](const State& build) { return build.configure(); });
}

std::function<bool()> shaped(void (*damage)(Run*)) {
  return damaged<Run>(damage, [](const Run& run) { return run.set_shapes(); });
}

template <typename State = Run, typename Damage>
std::function<bool()> enqueued(Damage damage) {
  return damaged<State>(damage, [](const State& run) { return run.set_shapes() && run.enqueue(); });
}

struct Misuse {
  const char* name;
  std::function<bool()> is_accepted;
};

const PluginField kMode{"mode", "mean", PluginFieldType::kCHAR, 4};

std::vector<Misuse> of_creators() {
  return {
      {"create without fields", [] { return create(nullptr); }},
      {"create of fields that are null",
       [] {
         const nvinfer1::PluginFieldCollection fields{2, nullptr};
         return create(&fields);
       }},
      {"create of an unknown field", [] { return create({kMode, {"power", "2", PluginFieldType::kCHAR, 1}}); }},
      {"create of a field without a name", [] { return create({kMode, {nullptr, "2", PluginFieldType::kCHAR, 1}}); }},
      {"create of a number without data",
       [] { return create({kMode, {"degree", nullptr, PluginFieldType::kINT32, 1}}); }},
      {"create of a state twice",
       [] {
         constexpr int32_t kTwo = 2;
         return create({kMode, {"stateful", &kTwo, PluginFieldType::kINT32, 1}});
       }},
      {"create of two degrees",
       [] {
         constexpr std::array<int32_t, 2> kTwo{0, 0};
         return create({kMode, {"degree", kTwo.data(), PluginFieldType::kINT32, 2}});
       }},
      {"create of a degree that is a float",
       [] {
         constexpr float kZero = 0.0F;
         return create({kMode, {"degree", &kZero, PluginFieldType::kFLOAT32, 1}});
       }},
      {"create of an epsilon that is an integer",
       [] {
         constexpr int32_t kZero = 0;
         return create({kMode, {"epsilon", &kZero, PluginFieldType::kINT32, 1}});
       }},
      {"create of a field twice", [] { return create({kMode, kMode}); }},
      {"create of a mode of two lines", [] { return create({{"mode", "mean\n!", PluginFieldType::kCHAR, 6}}); }},
      {"create of a negative length", [] { return create({{"mode", "mean", PluginFieldType::kCHAR, -1}}); }},
  };
}

std::vector<Misuse> of_builders() {
  return {
      {"configure without inputs", [] { return Build().configure(nullptr, 3); }},
      {"configure with one input", [] { return Build().configure(Build().tensors.data(), 1); }},
      {"configure of an unknown rank", configured([](Build* build) { build->tensors[0].max.nbDims = -1; })},
      {"configure of nine dimensions", configured([](Build* build) { build->tensors[0].max.nbDims = 9; })},
      {"configure of x with two dimensions", configured([](Build* build) { build->tensors[0].max.nbDims = 2; })},
      {"configure of other channels", configured([](Build* build) { build->tensors[1].max.d[0] = 7; })},
      {"configure of int64", configured([](Build* build) { build->tensors[0].desc.type = DataType::kINT64; })},
      {"configure without a length", [] { return StatefulBuild().configure(StatefulBuild().tensors.data(), 6); }},
      {"configure of a state of other channels",
       configured<StatefulBuild>([](StatefulBuild* build) { build->tensors[5].max.d[2] = 7; })},
      {"configure of a state of another batch",
       configured<StatefulBuild>([](StatefulBuild* build) { build->tensors[6].max.d[0] = 7; })},
      {"configure of a state where there is none", [] { return Build().configure(StatefulBuild().tensors.data(), 7); }},
      {"workspace of other channels", damaged<Build>([](Build* build) { build->tensors[1].max.d[0] = 7; },
                                                     [](const Build& build) {
                                                       const std::size_t bytes = build.builder->getWorkspaceSize(
                                                           build.tensors.data(), build.node.input_count(),
                                                           &build.tensors.back(), 1);
                                                       return bytes < std::size_t{1} << 40;
                                                     })},
      {"workspace of more tokens than 32 bits count",
       damaged<Build>([](Build* build) { build->tensors[0].max.d[1] = build->tensors[2].max.d[1] = int64_t{1} << 31; },
                      [](const Build& build) {
                        const std::size_t bytes = build.builder->getWorkspaceSize(
                            build.tensors.data(), build.node.input_count(), &build.tensors.back(), 1);
                        return bytes < std::size_t{1} << 40;
                      })},
      {"output types of nothing", [] { return Build().builder->getOutputDataTypes(nullptr, 1, nullptr, 3) == 0; }},
      {"a format without tensors", [] { return Build().builder->supportsFormatCombination(0, nullptr, 3, 1); }},
      {"a format before the first", [] { return Build().supports(-1); }},
      {"a format behind the last", [] { return Build().supports(4); }},
      {"a format that is not linear",
       damaged<Build>([](Build* build) { build->tensors[0].desc.format = nvinfer1::TensorFormat::kCHW32; },
                      [](const Build& build) { return build.supports(0); })},
      {"x of bool", damaged<Build>([](Build* build) { build->tensors[0].desc.type = DataType::kBOOL; },
                                   [](const Build& build) { return build.supports(0); })},
      {"an output of another type", damaged<Build>([](Build* build) { build->tensors[3].desc.type = DataType::kHALF; },
                                                   [](const Build& build) { return build.supports(3); })},
      {"a state of halves",
       damaged<StatefulBuild>([](StatefulBuild* build) { build->tensors[5].desc.type = DataType::kHALF; },
                              [](const StatefulBuild& build) { return build.supports(5); })},
      {"a length of int32",
       damaged<StatefulBuild>([](StatefulBuild* build) { build->tensors[6].desc.type = DataType::kINT32; },
                              [](const StatefulBuild& build) { return build.supports(6); })},
      {"a present length of floats",
       damaged<StatefulBuild>([](StatefulBuild* build) { build->tensors[9].desc.type = DataType::kFLOAT; },
                              [](const StatefulBuild& build) { return build.supports(9); })},
  };
}

std::vector<Misuse> of_contexts() {
  return {
      {"shapes without inputs", [] { return Run().runtime->onShapeChange(nullptr, 3, nullptr, 1) == 0; }},
      {"a negative batch", shaped([](Run* run) { run->node.tensors[0].dims.d[0] = -1; })},
      {"a mask of other tokens", shaped([](Run* run) { run->node.tensors[2].dims.d[1] = 6; })},
      {"more elements than there are",
       shaped([](Run* run) { run->node.tensors[0].dims.d[0] = run->node.tensors[2].dims.d[0] = int64_t{1} << 62; })},
      {"enqueue before shapes", [] { return Run().enqueue(); }},
      {"enqueue after refused shapes",
       [] {
         Run run;
         const bool first = run.set_shapes();
         run.node.tensors[2].dims.d[1] = 6;
         const bool second = run.set_shapes();
         static_cast<void>(take_log());
         return !first || second || run.enqueue();
       }},
      {"enqueue without inputs", enqueued([](Run* run) { run->inputs.clear(); })},
      {"enqueue without outputs", enqueued([](Run* run) { run->outputs.clear(); })},
      {"enqueue of a null x", enqueued([](Run* run) { run->inputs[0] = nullptr; })},
      {"enqueue of null coefficients", enqueued([](Run* run) { run->inputs[1] = nullptr; })},
      {"enqueue of a null mask", enqueued([](Run* run) { run->inputs[2] = nullptr; })},
      {"enqueue to a null output", enqueued([](Run* run) { run->outputs[0] = nullptr; })},
      {"enqueue of a null past", enqueued<StatefulRun>([](StatefulRun* run) { run->inputs[5] = nullptr; })},
      {"enqueue to a null present", enqueued<StatefulRun>([](StatefulRun* run) { run->outputs[2] = nullptr; })},
      {"enqueue of the present over the past",
       enqueued<StatefulRun>([](StatefulRun* run) { run->outputs[1] = run->memory.data(); })},
      {"enqueue with a workspace off its alignment",
       enqueued([](Run* run) { run->workspace = run->memory.data() + 1; })},
      {"enqueue with a null workspace", enqueued([](Run* run) { run->workspace = nullptr; })},
  };
}

}  // namespace

int try_misuse() {
  for (const std::vector<Misuse>& group : {of_creators(), of_builders(), of_contexts()}) {
    for (const Misuse& misuse : group) {
      static_cast<void>(take_log());
      if (misuse.is_accepted()) {
        std::cerr << misuse.name << " was accepted" << std::endl;
        return EXIT_FAILURE;
      }
      std::cout << misuse.name << ": " << take_log() << std::endl;
    }
  }
  return EXIT_SUCCESS;
}

}  // namespace pom::test
