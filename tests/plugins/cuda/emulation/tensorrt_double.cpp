#include "tensorrt_double.h"

#include <NvInferImpl.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <limits>
#include <optional>
#include <utility>

extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder* finder);
extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);

namespace pom::test {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginCapabilityType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

// An upper bound on a device's memory.
constexpr std::size_t kMemory = std::size_t{1} << 40;

class Log : public nvinfer1::ILogger, public nvinfer1::ILoggerFinder {
 public:
  void log(Severity, const char* text) noexcept override {
    std::snprintf(line.data(), line.size(), "%s", line[0] == '\0' ? text : "more than one line");
  }
  nvinfer1::ILogger* findLogger() override { return this; }

  std::array<char, 1024> line{};  // not a string, whose allocation would look like the plugin's
};

Log* the_log() {
  static Log log;
  return &log;
}

// A dimension of the network: a constant, or an input's dynamic size.
class Expression : public nvinfer1::IDimensionExpr, public nvinfer1::apiv::VDimensionExpr {
 public:
  explicit Expression(std::optional<int64_t> constant) : constant_(constant) { mImpl = this; }
  [[nodiscard]] bool isConstant() const override { return constant_.has_value(); }
  [[nodiscard]] int64_t getConstantValue() const override {
    return constant_.value_or(std::numeric_limits<int64_t>::min());
  }
  [[nodiscard]] bool isSizeTensor() const override { return false; }

 private:
  std::optional<int64_t> constant_;
};

class ExpressionBuilder : public nvinfer1::IExprBuilder, public nvinfer1::apiv::VExprBuilder {
 public:
  ExpressionBuilder() { mImpl = this; }
  // Does not allocate, which would look like the plugin's allocation.
  const nvinfer1::IDimensionExpr* constant(int64_t value) override { return value == 1 ? &one_ : nullptr; }
  const nvinfer1::IDimensionExpr* variable() { return &made_.emplace_back(std::nullopt); }
  const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation, const nvinfer1::IDimensionExpr&,
                                            const nvinfer1::IDimensionExpr&) override {
    return nullptr;
  }
  const nvinfer1::IDimensionExpr* declareSizeTensor(int32_t, const nvinfer1::IDimensionExpr&,
                                                    const nvinfer1::IDimensionExpr&) override {
    return nullptr;
  }

 private:
  std::list<Expression> made_;
  Expression one_{1};
};

DataType type_of(pom::DataType type) {
  constexpr DataType kTypes[] = {DataType::kFLOAT, DataType::kHALF, DataType::kBF16, DataType::kBOOL, DataType::kINT64};
  return kTypes[static_cast<std::size_t>(type)];
}

// A tensor as the builder describes it: dynamic axes have any size up to `growth` times the given one.
DynamicPluginTensorDesc dynamic(const PluginTensorDesc& tensor, const std::vector<int32_t>& axes, int64_t growth) {
  DynamicPluginTensorDesc wide{tensor, tensor.dims, tensor.dims, tensor.dims};
  for (const int32_t axis : axes) {
    wide.desc.dims.d[axis] = -1;
    wide.min.d[axis] = 1;
    wide.max.d[axis] = std::max<int64_t>(1, tensor.dims.d[axis] * growth);
    wide.opt.d[axis] = wide.max.d[axis];
  }
  return wide;
}

std::unique_ptr<nvinfer1::IPluginV3> create(nvinfer1::IPluginCreatorV3One* creator, Fields* fields,
                                            nvinfer1::TensorRTPhase phase) {
  const nvinfer1::PluginFieldCollection* const given = fields->collection();
  return std::unique_ptr<nvinfer1::IPluginV3>(
      entry("createPlugin", [&] { return creator->createPlugin("node", given, phase); }));
}

// Checks what the plugin declares about its outputs before any size is known.
void check_outputs(nvinfer1::IPluginV3OneBuild* builder, const Node& node) {
  const int32_t inputs = node.input_count();
  const auto first = static_cast<std::size_t>(inputs);
  ExpressionBuilder expressions;
  std::vector<DataType> types;
  std::vector<nvinfer1::DimsExprs> shapes;
  for (const PluginTensorDesc& tensor : node.tensors) {
    types.push_back(tensor.type);
    nvinfer1::DimsExprs& shape = shapes.emplace_back();
    shape.nbDims = tensor.dims.nbDims;
    std::generate(shape.d, shape.d + shape.nbDims, [&] { return expressions.variable(); });
  }
  std::vector<nvinfer1::DimsExprs> expected(shapes.begin() + inputs, shapes.end());
  const bool has_tokens = node.dynamic_axes[first].size() == 2;
  const nvinfer1::IDimensionExpr* const tokens = shapes[node.op == kGatedOpName ? kGate : std::size_t{kX}].d[1];
  expected[kY] = shapes[kX];
  expected[kY].d[1] = has_tokens ? tokens : expressions.constant(1);
  if (node.outputs > 1) {
    std::copy(shapes.begin() + inputs - 2, shapes.begin() + inputs, expected.begin() + kPresentState);
  }
  std::vector<DataType> made_types(expected.size(), DataType::kINT8);
  std::vector<nvinfer1::DimsExprs> made(expected.size());
  entry("getOutputDataTypes",
        [&] { return builder->getOutputDataTypes(made_types.data(), node.outputs, types.data(), inputs); });
  entry("getOutputShapes", [&] {
    return builder->getOutputShapes(shapes.data(), inputs, nullptr, 0, made.data(), node.outputs, expressions);
  });
  const auto is_same = [](const nvinfer1::DimsExprs& a, const nvinfer1::DimsExprs& b) {
    return a.nbDims == b.nbDims && std::equal(a.d, a.d + a.nbDims, b.d);
  };
  if (builder->getNbOutputs() != node.outputs || !std::equal(made_types.begin(), made_types.end(), &types[first]) ||
      !std::equal(made.begin(), made.end(), expected.begin(), is_same)) {
    throw std::runtime_error("the outputs have another type or shape than the op's");
  }
}

PluginFieldType field_type(const std::string&) { return PluginFieldType::kCHAR; }
PluginFieldType field_type(int32_t) { return PluginFieldType::kINT32; }
PluginFieldType field_type(float) { return PluginFieldType::kFLOAT32; }

}  // namespace

const char* take_log() {
  static std::array<char, 1024> taken;
  taken = std::exchange(the_log()->line, {});
  return taken.data();
}

Fields::Fields(const nvinfer1::PluginFieldCollection& others) {
  std::for_each(others.fields, others.fields + others.nbFields, [&](const PluginField& field) {
    const auto size = static_cast<std::size_t>(field.length) * (field.type == PluginFieldType::kCHAR ? 1 : 4);
    owned_.push_back({field.name, {static_cast<const char*>(field.data), size}, field.type, field.length});
  });
}

void Fields::add(const char* name, const std::string& text) {
  owned_.push_back({name, text, field_type(text), static_cast<int32_t>(text.size())});
}

void Fields::add(const char* name, int32_t value) {
  owned_.push_back({name, {reinterpret_cast<const char*>(&value), sizeof value}, field_type(value), 1});
}

void Fields::add(const char* name, float value) {
  owned_.push_back({name, {reinterpret_cast<const char*>(&value), sizeof value}, field_type(value), 1});
}

const nvinfer1::PluginFieldCollection* Fields::collection() {
  fields_.clear();
  for (const Field& field : owned_) {
    fields_.emplace_back(field.name.c_str(), field.bytes.data(), field.type, field.length);
  }
  collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
  return &collection_;
}

Node node_of(const Call& call) {
  const Problem& problem = call.problem;
  const Attributes& attributes = problem.attributes;
  Node node;
  node.op = call.gate ? kGatedOpName : kOpName;
  node.fields.add("form", kForms[static_cast<std::size_t>(attributes.form)]);
  node.fields.add("degree", attributes.degree);
  node.fields.add("mode", kModes[static_cast<std::size_t>(attributes.mode)]);
  node.fields.add("rotary_blocks", attributes.rotary_blocks);
  node.fields.add("epsilon", attributes.epsilon);
  node.fields.add("stateful", static_cast<int32_t>(attributes.stateful));
  if (call.gate) {
    node.fields.add("gate_activation", kGateActivations[static_cast<std::size_t>(call.gate->activation)]);
  }
  node.fields.add("plugin_version", std::string(kPluginVersion) + '\0');  // as TensorRT's parser writes it
  node.fields.add("plugin_namespace", kPluginNamespace);

  const auto add = [&](pom::DataType type, const std::vector<int64_t>& sizes, const std::vector<int32_t>& axes) {
    node.tensors.push_back(describe(type_of(type), sizes));
    node.dynamic_axes.push_back(axes);
  };
  // An absent input is replaced by a placeholder, which has one of its types.
  const auto add_if = [&](bool given, pom::DataType type, const std::vector<int64_t>& sizes,
                          const std::vector<int32_t>& axes) {
    add(type, given ? sizes : std::vector<int64_t>{1}, given ? axes : std::vector<int32_t>{});
  };
  add(problem.data_type, {problem.batch, problem.tokens, problem.channels}, {0, 1});
  if (call.gate) {
    add(problem.data_type, {problem.batch, call.gate->tokens, call.gate->gates}, {0, 1});
    add(call.gate->bias_type, {call.gate->gates}, {});
  }
  add_if(attributes.form == Form::kPower, problem.coefficient_type, {problem.channels, problem.degree}, {});
  if (problem.has_mask || problem.has_rotation || attributes.stateful) {
    const bool one_row = problem.mask_batch != problem.batch;
    add_if(problem.has_mask, problem.mask_type, {problem.mask_batch, problem.tokens},
           one_row ? std::vector<int32_t>{1} : std::vector<int32_t>{0, 1});
  }
  for (int32_t i = 0; (problem.has_rotation || attributes.stateful) && i < 2; ++i) {
    if (problem.rotation_batch == 1) {
      add_if(problem.has_rotation, problem.rotation_type, {problem.tokens, problem.channels / 2}, {0});
    } else {
      add_if(problem.has_rotation, problem.rotation_type,
             {problem.rotation_batch, problem.tokens, problem.channels / 2}, {0, 1});
    }
  }
  const auto add_state = [&] {
    if (attributes.stateful) {
      add(pom::DataType::kFloat32, {problem.batch, kStateRows, problem.channels}, {0});
      add(pom::DataType::kInt64, {problem.batch}, {0});
    }
  };
  add_state();
  const std::size_t inputs = node.tensors.size();
  const int64_t tokens = call.gate ? call.gate->tokens : problem.output_tokens();
  const bool is_mean = !call.gate && attributes.mode == Mode::kMean;
  add(problem.data_type, {problem.batch, tokens, problem.channels},
      is_mean ? std::vector<int32_t>{0} : std::vector<int32_t>{0, 1});
  add_state();
  node.outputs = static_cast<int32_t>(node.tensors.size() - inputs);
  return node;
}

PluginTensorDesc describe(DataType type, const std::vector<int64_t>& sizes) {
  PluginTensorDesc tensor{};
  tensor.type = type;
  tensor.format = nvinfer1::TensorFormat::kLINEAR;
  tensor.dims.nbDims = static_cast<int32_t>(sizes.size());
  std::copy(sizes.begin(), sizes.end(), tensor.dims.d);
  return tensor;
}

nvinfer1::IPluginCreatorV3One* creator_of(const std::string& op) {
  setLoggerFinder(the_log());
  int32_t count = 0;
  nvinfer1::IPluginCreatorInterface* const* creators = getCreators(count);
  for (int32_t i = 0; i < count; ++i) {
    auto* creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
    if (creator->getPluginName() == op) {
      return creator;
    }
  }
  throw std::runtime_error("no creator of " + op);
}

Engine build(Node node, int64_t growth) {
  auto* creator = creator_of(node.op);
  entry("getFieldNames", [&] { return creator->getFieldNames(); });
  auto parsed = create(creator, &node.fields, nvinfer1::TensorRTPhase::kBUILD);
  node.fields = {};
  // A network keeps a copy.
  const std::unique_ptr<nvinfer1::IPluginV3> plugin(entry("clone", [&] { return parsed->clone(); }));
  parsed.reset();
  capability_of<nvinfer1::IPluginV3OneCore>(plugin.get(), PluginCapabilityType::kCORE);
  auto* builder = capability_of<nvinfer1::IPluginV3OneBuild>(plugin.get(), PluginCapabilityType::kBUILD);
  auto* runtime = capability_of<nvinfer1::IPluginV3OneRuntime>(plugin.get(), PluginCapabilityType::kRUNTIME);
  const int32_t inputs = node.input_count();
  const int32_t outputs = node.outputs;
  check_outputs(builder, node);

  std::vector<DynamicPluginTensorDesc> tensors;
  for (std::size_t i = 0; i < node.tensors.size(); ++i) {
    tensors.push_back(dynamic(node.tensors[i], node.dynamic_axes[i], growth));
  }
  const DynamicPluginTensorDesc* const made = &tensors[static_cast<std::size_t>(inputs)];
  for (int32_t position = 0; position < inputs + outputs; ++position) {
    entry("supportsFormatCombination",
          [&] { return builder->supportsFormatCombination(position, tensors.data(), inputs, outputs); });
  }
  entry("configurePlugin", [&] { return builder->configurePlugin(tensors.data(), inputs, made, outputs); });
  Engine engine{node.op, {}, 0};
  entry("getWorkspaceSize", [&] {
    engine.workspace_bytes = builder->getWorkspaceSize(tensors.data(), inputs, made, outputs);
    return engine.workspace_bytes <= kMemory;
  });
  engine.fields = Fields(*entry("getFieldsToSerialize", [&] { return runtime->getFieldsToSerialize(); }));
  return engine;
}

std::unique_ptr<nvinfer1::IPluginV3> load(Engine* engine) {
  return create(creator_of(engine->op), &engine->fields, nvinfer1::TensorRTPhase::kRUNTIME);
}

Context::Context(nvinfer1::IPluginV3* loaded) {
  auto* runtime = capability_of<nvinfer1::IPluginV3OneRuntime>(loaded, PluginCapabilityType::kRUNTIME);
  plugin_.reset(entry("attachToContext", [&] { return runtime->attachToContext(nullptr); }));
  runtime_ = capability_of<nvinfer1::IPluginV3OneRuntime>(plugin_.get(), PluginCapabilityType::kRUNTIME);
}

void Context::set_shapes(const Node& node) {
  tensors_ = node.tensors;
  outputs_ = node.outputs;
  entry("onShapeChange", [&] {
    return runtime_->onShapeChange(tensors_.data(), node.input_count(), tensors_.data() + node.input_count(), outputs_);
  });
}

void Context::enqueue(const std::vector<const void*>& inputs, const std::vector<void*>& outputs, void* workspace) {
  entry("enqueue", [&] {
    return runtime_->enqueue(tensors_.data(), tensors_.data() + tensors_.size() - outputs_, inputs.data(),
                             outputs.data(), workspace, nullptr);
  });
}

}  // namespace pom::test
