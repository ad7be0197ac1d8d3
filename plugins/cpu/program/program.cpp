#include "program.h"

#include <algorithm>
#include <string>

#include "pom/contract.h"

namespace pom::cpu {
namespace {

constexpr int64_t kVersion = 2;
constexpr int64_t kMaxSize = int64_t{1} << 31;  // of a matrix's side

[[noreturn]] void refuse(const std::string& what) { throw InvalidProgram("the program " + what); }

// Reads numbers one after the other.
class Reader {
 public:
  Reader(const std::vector<int64_t>& code, const std::vector<float>& constants) : code_(code), constants_(constants) {}

  [[nodiscard]] bool at_end() const { return at_ == code_.size(); }

  int64_t next() {
    if (at_end()) {
      refuse("ends too early");
    }
    return code_[at_++];
  }
  int64_t next(int64_t least, int64_t most) {
    const int64_t number = next();
    if (number < least || number > most) {
      refuse("has " + std::to_string(number) + " where " + std::to_string(least) + " to " + std::to_string(most) +
             " are possible");
    }
    return number;
  }
  int64_t size() { return next(1, kMaxSize); }
  // A constant by its position, or the default without one.
  float constant(float otherwise) {
    const int64_t position = next(kNoValue, static_cast<int64_t>(constants_.size()) - 1);
    return position == kNoValue ? otherwise : constants_[static_cast<size_t>(position)];
  }
  Activation activation() { return static_cast<Activation>(next(0, static_cast<int64_t>(Activation::kSilu))); }
  [[nodiscard]] size_t position() const { return at_; }

 private:
  const std::vector<int64_t>& code_;
  const std::vector<float>& constants_;
  size_t at_ = 0;
};

// Reads instructions and checks the sizes of the slots that they use.
class Parser {
 public:
  Parser(Program* program, Reader* reader, int64_t node_outputs)
      : program_(*program), reader_(*reader), node_outputs_(node_outputs) {}

  Instruction instruction() {
    Instruction read;
    read.operation = static_cast<Operation>(reader_.next());
    const auto length = static_cast<size_t>(reader_.size());
    const size_t end = reader_.position() + length;
    switch (read.operation) {
      case Operation::kProduct:
      case Operation::kProduct8:
        read.bits = read.operation == Operation::kProduct ? 4 : 8;
        product(&read);
        break;
      case Operation::kGroups:
        product(&read);
        break;
      case Operation::kRmsNorm:
      case Operation::kLayerNorm:
        norm(&read);
        break;
      case Operation::kElementwise:
        elementwise(&read);
        break;
      case Operation::kAggregate:
        aggregate(&read, end);
        break;
      default:
        refuse("has an unknown operation, " + std::to_string(static_cast<int64_t>(read.operation)));
    }
    if (reader_.position() != end) {
      refuse("has an instruction of another length");
    }
    return read;
  }

 private:
  [[nodiscard]] int64_t values() const { return program_.inputs + static_cast<int64_t>(program_.widths.size()); }
  int64_t any(int64_t least = 0) { return reader_.next(least, values() - 1); }
  int64_t constant_input(int64_t least) { return reader_.next(least, program_.inputs - 1); }

  void check_width(int64_t value, int64_t width) const {
    if (value != kNoValue && program_.is_slot(value) && program_.width(value) != width) {
      refuse("uses a slot of " + std::to_string(program_.width(value)) + " columns for " + std::to_string(width));
    }
  }
  int64_t slot() { return reader_.next(program_.inputs, values() - 1); }

  void product(Instruction* read) {
    read->x = any();
    read->weights = constant_input(0);
    read->bias = constant_input(kNoValue);
    read->added = any(kNoValue);
    read->y = slot();
    if (read->operation == Operation::kGroups) {
      read->groups = reader_.size();
    }
    read->inputs = reader_.size();
    read->outputs = reader_.size();
    if (read->is_product()) {
      read->block = reader_.next(kSmallestProductBlock, kLargestProductBlock);
      if ((read->block & (read->block - 1)) != 0) {
        refuse("has blocks of " + std::to_string(read->block));
      }
    }
    read->activation = reader_.activation();
    read->factor = reader_.constant(1.0F);
    check_width(read->x, read->groups * read->inputs);
    check_width(read->y, read->groups * read->outputs);
    check_width(read->added, read->groups * read->outputs);
    if (read->y == read->x) {
      refuse("has a product that overwrites what it reads");
    }
  }

  void norm(Instruction* read) {
    read->x = any();
    read->weights = constant_input(kNoValue);
    if (read->operation == Operation::kLayerNorm) {
      read->bias = constant_input(kNoValue);
    }
    read->y = slot();
    read->inputs = read->outputs = reader_.size();
    read->epsilon = reader_.constant(0.0F);
    check_width(read->x, read->inputs);
    check_width(read->y, read->outputs);
  }

  void elementwise(Instruction* read) {
    read->x = any();
    read->multiplied = any(kNoValue);
    read->added = any(kNoValue);
    read->y = slot();
    read->inputs = read->outputs = reader_.size();
    read->activation = reader_.activation();
    read->factor = reader_.constant(1.0F);
    for (const int64_t value : {read->x, read->multiplied, read->added, read->y}) {
      check_width(value, read->inputs);
    }
  }

  void aggregate(Instruction* read, size_t end) {
    read->y = slot();
    read->outputs = program_.width(read->y);
    read->present_state = reader_.next(kNoValue, node_outputs_ - 1);
    read->present_length = reader_.next(kNoValue, node_outputs_ - 1);
    const bool gated = reader_.next(0, 1) == 1;
    Attributes& attributes = read->attributes.aggregation;
    attributes.degree = static_cast<int32_t>(reader_.next(0, kMaxDegree));
    attributes.form = static_cast<Form>(reader_.next(0, static_cast<int64_t>(kForms.size()) - 1));
    attributes.mode = static_cast<Mode>(reader_.next(0, static_cast<int64_t>(kModes.size()) - 1));
    attributes.rotary_blocks = static_cast<int32_t>(reader_.next(1, kMaxSize - 1));
    attributes.stateful = reader_.next(0, 1) == 1;
    const int64_t activation = reader_.next(0, static_cast<int64_t>(kGateActivations.size()) - 1);
    if (gated) {
      read->attributes.activation = static_cast<GateActivation>(activation);
    }
    attributes.epsilon = reader_.constant(0.0F);
    read->layers = reader_.next(0, kMaxSize);
    read->layer = reader_.next(0, std::max(read->layers - 1, int64_t{0}));
    while (reader_.position() < end) {
      read->op_inputs.push_back(any(kNoValue));
    }
    if (read->op_inputs.empty() || read->op_inputs[kX] == kNoValue || read->op_inputs[kX] == read->y) {
      refuse("has an aggregation without an x of its own");
    }
    if (const std::string error = validate(read->attributes); !error.empty()) {
      refuse("has an aggregation that is wrong: " + error);
    }
    read->x = read->op_inputs[kX];
    read->aggregation = program_.aggregations++;
  }

  Program& program_;
  Reader& reader_;
  const int64_t node_outputs_;
};

[[nodiscard]] bool is_by_row(const Instruction& instruction) {
  return instruction.operation == Operation::kRmsNorm || instruction.operation == Operation::kLayerNorm ||
         instruction.operation == Operation::kElementwise;
}

// When memory was last written and read, in stages.
struct Use {
  int64_t written = -1;
  int64_t read = -1;
};

// Puts each instruction into the first stage that follows whatever it depends on.
class Scheduler {
 public:
  explicit Scheduler(Program* program)
      : program_(*program),
        values_(static_cast<size_t>(program->inputs) + program->widths.size()),
        writers_(values_.size(), kNoValue) {}

  void add(int64_t position) {
    Instruction& instruction = program_.instructions[static_cast<size_t>(position)];
    if (instruction.is_product()) {
      instruction.rounding = rounding_of(instruction);
    }
    std::vector<int64_t> reads = instruction.op_inputs;
    reads.insert(reads.end(), {instruction.x, instruction.multiplied, instruction.added});
    int64_t stage = 0;
    for (const int64_t value : reads) {
      stage = std::max(stage, value == kNoValue ? 0 : use(value).written + 1);
    }
    if (instruction.rounding != kNoValue) {
      stage = std::max(stage, rounded_in_[static_cast<size_t>(instruction.rounding)] + 1);
    }
    Use& y = use(instruction.y);
    stage = std::max({stage, y.written + 1, y.read + 1});
    // An aggregation has up to two phases.
    const int64_t end = instruction.operation == Operation::kAggregate ? stage + 1 : stage;
    for (const int64_t value : reads) {
      if (value != kNoValue) {
        use(value).read = std::max(use(value).read, end);
      }
    }
    if (instruction.rounding != kNoValue) {
      int64_t& read = buffers_[buffer_of(instruction.rounding)].read;
      read = std::max(read, stage);
    }
    y.written = end;
    writers_[static_cast<size_t>(instruction.y)] = position;
    for (int64_t at = stage; at <= end; ++at) {
      stage_at(at).push_back({position, kNoValue, static_cast<int>(at - stage)});
    }
  }

 private:
  Use& use(int64_t value) { return values_[static_cast<size_t>(value)]; }
  size_t buffer_of(int64_t rounding) const {
    return static_cast<size_t>(program_.roundings[static_cast<size_t>(rounding)].buffer);
  }
  Stage& stage_at(int64_t stage) {
    if (program_.stages.size() <= static_cast<size_t>(stage)) {
      program_.stages.resize(static_cast<size_t>(stage) + 1);
    }
    return program_.stages[static_cast<size_t>(stage)];
  }

  // The rounding of an instruction's x, which an earlier instruction may have needed too.
  int64_t rounding_of(const Instruction& instruction) {
    const int64_t written = use(instruction.x).written;
    for (size_t i = 0; i < program_.roundings.size(); ++i) {
      const Rounding& made = program_.roundings[i];
      const bool fits =
          made.value == instruction.x && made.inputs == instruction.inputs && made.block == instruction.block;
      if (fits && made_after_[i] == written && buffers_[buffer_of(static_cast<int64_t>(i))].owner == i) {
        return static_cast<int64_t>(i);
      }
    }
    const int64_t writer = writers_[static_cast<size_t>(instruction.x)];
    const bool by_writer = writer != kNoValue && is_by_row(program_.instructions[static_cast<size_t>(writer)]);
    const int64_t stage = by_writer ? written : written + 1;
    const auto number = static_cast<int64_t>(program_.roundings.size());
    program_.roundings.push_back({instruction.x, instruction.inputs, instruction.block, 0});
    program_.roundings.back().buffer = static_cast<int64_t>(free_buffer(stage, program_.roundings.back().bytes()));
    made_after_.push_back(written);
    rounded_in_.push_back(stage);
    if (by_writer) {
      program_.instructions[static_cast<size_t>(writer)].roundings.push_back(number);
    } else {
      stage_at(stage).push_back({kNoValue, number, 0});
      use(instruction.x).read = std::max(use(instruction.x).read, stage);
    }
    return number;
  }

  // Memory that nothing reads any more in a stage.
  size_t free_buffer(int64_t stage, int64_t bytes) {
    size_t found = 0;
    while (found < buffers_.size() && buffers_[found].read >= stage) {
      ++found;
    }
    if (found == buffers_.size()) {
      buffers_.emplace_back();
      program_.buffer_bytes.push_back(0);
    }
    buffers_[found] = {stage, program_.roundings.size() - 1};
    program_.buffer_bytes[found] = std::max(program_.buffer_bytes[found], bytes);
    return found;
  }

  struct Buffer {
    int64_t read = -1;
    size_t owner = 0;
  };

  Program& program_;
  std::vector<Use> values_;
  std::vector<int64_t> writers_;     // the instruction that wrote a value last
  std::vector<int64_t> made_after_;  // for each rounding, the stage that wrote its value
  std::vector<int64_t> rounded_in_;  // for each rounding
  std::vector<Buffer> buffers_;
};

}  // namespace

int64_t Instruction::tile_bytes() const {
  if (!is_product()) {
    return inputs * kTileOutputs * int64_t{sizeof(float)};
  }
  const int64_t blocks = (inputs + block - 1) / block;
  return blocks * kTileOutputs * (int64_t{sizeof(float)} + block * bits / 8);
}

Program::Program(const std::vector<int64_t>& code, const std::vector<float>& constants, int64_t node_inputs,
                 int64_t node_outputs)
    : inputs(node_inputs) {
  Reader reader(code, constants);
  if (const int64_t version = reader.next(); version != kVersion) {
    refuse("is of version " + std::to_string(version) + ", this library reads " + std::to_string(kVersion));
  }
  const int64_t slots = reader.size();
  if (reader.next() != node_outputs) {
    refuse("has another number of outputs than its node");
  }
  for (int64_t i = 0; i < slots; ++i) {
    widths.push_back(reader.size());
  }
  for (int64_t i = 0; i < node_outputs; ++i) {
    const int64_t value = reader.next(kNoValue, inputs + slots - 1);
    if (value != kNoValue && !is_slot(value)) {
      refuse("has an input as an output");
    }
    output_slots.push_back(value);
  }
  Parser parser(this, &reader, node_outputs);
  while (!reader.at_end()) {
    instructions.push_back(parser.instruction());
  }
  Scheduler scheduler(this);
  for (size_t i = 0; i < instructions.size(); ++i) {
    scheduler.add(static_cast<int64_t>(i));
  }
}

}  // namespace pom::cpu
