#include "run.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "../pause.h"
#include "pom/contract.h"

namespace pom::cpu {
namespace {

constexpr int kPauses = 2000;              // before a waiting thread yields
constexpr int64_t kMaxThreads = 256;       // of a stage
constexpr int64_t kElementsOfTask = 8192;  // for what is computed row by row
// Up to this many rows, a product takes as long as reading its weights, and a task reads this many bytes of them.
constexpr int64_t kFewRows = 8;
constexpr int64_t kBytesOfTask = 32768;
// For more rows, a task has a panel of rows, whose activations stay in the cache, and this many multiply-adds.
constexpr int64_t kPanelRows = 128;
// A stage has at most this many segments.
constexpr int64_t kMaxSegments = 16;
// While a thread waits, it fetches so much of the weights that it will read next into its cache.
constexpr int64_t kFetchedBytes = int64_t{256} << 10;
constexpr int64_t kLine = 64;
constexpr int64_t kWorkOfTask = int64_t{1} << 21;

void fetch(const unsigned char* line) {
#if defined(__GNUC__)
  __builtin_prefetch(line, 0, 2);
#else
  static_cast<void>(line);
#endif
}

int64_t processors() {
  static const auto count = static_cast<int64_t>(std::thread::hardware_concurrency());
  return std::max(count, int64_t{1});
}

// The tiles of a task: of few rows by the weights' bytes, else by the work.
int64_t tiles_of_task(int64_t rows, int64_t tiles, int64_t tile_bytes, int64_t inputs) {
  const int64_t wanted =
      rows <= kFewRows ? kBytesOfTask / tile_bytes : kWorkOfTask / (std::min(rows, kPanelRows) * kTileOutputs * inputs);
  // Two at least: kernels multiply two tiles at once.
  return std::clamp(wanted, int64_t{2}, std::max(tiles, int64_t{2}));
}

}  // namespace

Run::Run(const Program& program, const Kernel& kernel, int64_t rows, Memory memory,
         const std::vector<AggregationCall>& aggregations)
    : program_(program),
      kernel_(product_kernel(kernel)),
      rows_(rows),
      memory_(std::move(memory)),
      aggregations_(aggregations.size()),
      levels_(new Level[program.stages.size()]) {
  for (const Instruction& instruction : program.instructions) {
    if (instruction.operation != Operation::kAggregate) {
      continue;
    }
    const auto position = static_cast<size_t>(instruction.aggregation);
    const AggregationCall& each = aggregations[position];
    const auto input = [&](size_t at) -> const void* {
      const int64_t value = at < instruction.op_inputs.size() ? instruction.op_inputs[at] : kNoValue;
      return value == kNoValue ? nullptr : values(value);
    };
    const bool gated = each.call.gate.has_value();
    const auto data = [&](Input at) { return input(position_of(gated, at)); };
    Tensors tensors{data(kX), data(kMask), data(kCos), data(kSin), nullptr, nullptr, slot(instruction.y)};
    if (gated) {
      tensors.gate = input(kGate);
      tensors.gate_bias = each.gate_bias;
    }
    const int64_t offset = instruction.layer * instruction.state_size();
    if (const auto* const states = static_cast<const float*>(data(kPastState))) {
      tensors.past_state = states + offset;
    }
    tensors.past_length = static_cast<const int64_t*>(data(kPastLength));
    if (each.present_state != nullptr) {
      tensors.present_state = each.present_state + offset;
    }
    tensors.present_length = each.present_length;
    tensors.state_stride = instruction.layers * instruction.state_size();
    aggregations_[position] = std::make_unique<Aggregation>(
        kernel, each.call.problem, gated ? &*each.call.gate : nullptr, tensors, *each.coefficients);
  }
  for (size_t i = 0; i < program.stages.size(); ++i) {
    for (const Piece& piece : program.stages[i]) {
      const Part part = part_of(piece);
      if (part.tasks > 0) {
        levels_[i].tasks += part.tasks;
        levels_[i].parts.push_back(part);
      }
    }
    threads_ = std::max(threads_, std::min(levels_[i].tasks, kMaxThreads));
  }
  split_levels();
}

void Run::split_levels() {
  const auto segments_of = [](const Level& level) { return std::min({level.tasks, processors(), kMaxSegments}); };
  const size_t stages = program_.stages.size();
  int64_t count = 0;
  for (size_t i = 0; i < stages; ++i) {
    count += segments_of(levels_[i]);
  }
  segments_.reset(new Segment[static_cast<size_t>(count)]);
  Segment* next = segments_.get();
  for (size_t i = 0; i < stages; ++i) {
    Level& level = levels_[i];
    const int64_t segments = segments_of(level);
    level.segments = next;
    level.segment_count = static_cast<size_t>(segments);
    for (int64_t each = 0; each < segments; ++each, ++next) {
      next->next.store(level.tasks * each / segments, std::memory_order_relaxed);
      next->end = level.tasks * (each + 1) / segments;
    }
  }
}

Run::Part Run::part_of(const Piece& piece) const {
  Part part;
  part.piece = piece;
  if (piece.rounding != kNoValue) {
    const Rounding& rounding = program_.roundings[static_cast<size_t>(piece.rounding)];
    part.panel = std::max(kElementsOfTask / rounding.inputs, int64_t{1});
    part.tasks = divide_up(rows_, part.panel);
    return part;
  }
  const Instruction& instruction = program_.instructions[static_cast<size_t>(piece.instruction)];
  switch (instruction.operation) {
    case Operation::kAggregate: {
      const Aggregation& aggregation = *aggregations_[static_cast<size_t>(instruction.aggregation)];
      if (piece.phase < aggregation.phases()) {
        part.tasks = aggregation.tasks(piece.phase);
        part.in_any_order = aggregation.in_any_order(piece.phase);
      }
      break;
    }
    case Operation::kProduct:
    case Operation::kProduct8:
    case Operation::kGroups:
      split_product(instruction, &part);
      break;
    default:
      part.panel = std::max(kElementsOfTask / instruction.inputs, int64_t{1});
      part.tasks = divide_up(rows_, part.panel);
  }
  return part;
}

void Run::split_product(const Instruction& instruction, Part* part) const {
  const int64_t tiles = divide_up(instruction.outputs, kTileOutputs);
  part->weights = static_cast<const unsigned char*>(memory_.inputs[static_cast<size_t>(instruction.weights)]);
  part->tile_bytes = instruction.tile_bytes();
  part->bytes = instruction.groups * tiles * part->tile_bytes;
  part->tiles = tiles_of_task(rows_, tiles, part->tile_bytes, instruction.inputs);
  part->panel = rows_ <= kFewRows ? std::max(rows_, int64_t{1}) : kPanelRows;
  part->tasks = divide_up(rows_, part->panel) * instruction.groups * divide_up(tiles, part->tiles);
}

const float* Run::values(int64_t value) const {
  return program_.is_slot(value) ? slot(value) : static_cast<const float*>(memory_.inputs[static_cast<size_t>(value)]);
}

float* Run::slot(int64_t value) const { return memory_.slots[static_cast<size_t>(value - program_.inputs)]; }

RoundedRows Run::rounded(int64_t rounding, int64_t first_row) const {
  const Rounding& made = program_.roundings[static_cast<size_t>(rounding)];
  unsigned char* const buffer = memory_.buffers[static_cast<size_t>(made.buffer)];
  auto* const scales = reinterpret_cast<float*>(buffer);
  auto* const corrections = reinterpret_cast<int32_t*>(scales + rows_ * made.blocks());
  auto* const rounded_values = reinterpret_cast<int8_t*>(corrections + rows_ * made.blocks());
  return {rounded_values + first_row * made.stride(), scales + first_row * made.blocks(),
          corrections + first_row * made.blocks(), made.stride(), made.blocks()};
}

Epilogue Run::epilogue_of(const Instruction& instruction, int64_t first_row, int64_t width) const {
  Epilogue epilogue{};
  epilogue.bias = instruction.bias == kNoValue ? nullptr : values(instruction.bias);
  epilogue.activation = instruction.activation;
  epilogue.factor = instruction.factor;
  epilogue.added = instruction.added == kNoValue ? nullptr : values(instruction.added) + first_row * width;
  epilogue.added_stride = width;
  return epilogue;
}

void Run::work() noexcept {
  const size_t thread = entered_.fetch_add(1, std::memory_order_relaxed);
  const size_t stages = program_.stages.size();
  // A thread that comes late begins with a later stage. The order of two threads' stores doesn't matter.
  for (size_t i = current_.load(std::memory_order_acquire); i < stages; ++i) {
    run_level(&levels_[i], thread);
    wait_for(i, thread);
    current_.store(i + 1, std::memory_order_release);
  }
}

void Run::run_level(Level* level, size_t thread) const {
  int64_t done = 0;
  for (size_t i = 0; i < level->segment_count; ++i) {
    Segment& segment = level->segments[(thread + i) % level->segment_count];
    while (segment.next.load(std::memory_order_relaxed) < segment.end) {
      const int64_t task = segment.next.fetch_add(1, std::memory_order_relaxed);
      if (task >= segment.end) {
        break;
      }
      run(*level, task);
      ++done;
    }
  }
  if (done > 0) {
    level->done.fetch_add(done, std::memory_order_acq_rel);
  }
}

// While a thread waits, memory need not: it fetches the weights that come next.
void Run::wait_for(size_t stage, size_t thread) const {
  const Level& level = levels_[stage];
  Bytes weights;
  bool found = false;
  int64_t fetched = 0;
  for (int pauses = 0; level.done.load(std::memory_order_acquire) < level.tasks; ++pauses) {
    if (!found) {
      weights = next_weights(stage, thread);
      found = true;
    } else if (fetched < weights.count) {
      fetch(weights.first + fetched);
      fetched += kLine;
    } else if (pauses < kPauses) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
}

// The weights that a thread will probably read next. With many rows it is not worth fetching them early.
Run::Bytes Run::next_weights(size_t stage, size_t thread) const {
  if (rows_ > kFewRows) {
    return {};
  }
  for (size_t i = stage + 1; i < program_.stages.size(); ++i) {
    const Level& level = levels_[i];
    for (const Part& part : level.parts) {
      if (part.weights == nullptr) {
        continue;
      }
      const Segment& segment = level.segments[thread % level.segment_count];
      const int64_t task = std::min(segment.next.load(std::memory_order_relaxed), part.tasks - 1);
      const int64_t first = task * part.tiles * part.tile_bytes;
      return {part.weights + first, std::clamp(part.bytes - first, int64_t{0}, kFetchedBytes)};
    }
  }
  return {};
}

void Run::run(const Level& level, int64_t task) const {
  for (const Part& part : level.parts) {
    if (task < part.tasks) {
      run(part, task);
      return;
    }
    task -= part.tasks;
  }
}

void Run::run(const Part& part, int64_t task) const {
  if (part.piece.rounding != kNoValue) {
    const int64_t first = task * part.panel;
    round(part.piece.rounding, first, std::min(part.panel, rows_ - first));
    return;
  }
  const Instruction& instruction = program_.instructions[static_cast<size_t>(part.piece.instruction)];
  switch (instruction.operation) {
    case Operation::kAggregate: {
      Aggregation& aggregation = *aggregations_[static_cast<size_t>(instruction.aggregation)];
      if (part.in_any_order) {
        aggregation.run(part.piece.phase, task);
      } else {
        aggregation.run_next(part.piece.phase);
      }
      break;
    }
    case Operation::kProduct:
    case Operation::kProduct8:
      multiply(instruction, part, task);
      break;
    case Operation::kGroups:
      multiply_groups(instruction, part, task);
      break;
    default:
      compute_rows(instruction, part, task);
  }
}

void Run::multiply(const Instruction& instruction, const Part& part, int64_t task) const {
  const int64_t tiles = divide_up(instruction.outputs, kTileOutputs);
  const int64_t columns = divide_up(tiles, part.tiles);
  const int64_t first_row = task / columns * part.panel;
  const int64_t first_tile = task % columns * part.tiles;
  Product product{};
  product.x = rounded(instruction.rounding, first_row);
  product.rows = std::min(part.panel, rows_ - first_row);
  product.weights = static_cast<const uint8_t*>(memory_.inputs[static_cast<size_t>(instruction.weights)]);
  product.bits = instruction.bits;
  product.block = instruction.block;
  product.outputs = instruction.outputs;
  product.y = slot(instruction.y) + first_row * instruction.outputs;
  product.y_stride = instruction.outputs;
  product.epilogue = epilogue_of(instruction, first_row, instruction.outputs);
  kernel_.multiply(product, first_tile, std::min(first_tile + part.tiles, tiles));
}

void Run::multiply_groups(const Instruction& instruction, const Part& part, int64_t task) const {
  const int64_t tiles = divide_up(instruction.outputs, kTileOutputs);
  const int64_t columns = divide_up(tiles, part.tiles);
  const int64_t first_row = task / (columns * instruction.groups) * part.panel;
  const int64_t group = task / columns % instruction.groups;
  const int64_t first_tile = task % columns * part.tiles;
  GroupedProduct product{};
  product.x_stride = instruction.groups * instruction.inputs;
  product.x = values(instruction.x) + first_row * product.x_stride;
  product.rows = std::min(part.panel, rows_ - first_row);
  product.weights = values(instruction.weights);
  product.groups = instruction.groups;
  product.inputs = instruction.inputs;
  product.outputs = instruction.outputs;
  product.y_stride = instruction.groups * instruction.outputs;
  product.y = slot(instruction.y) + first_row * product.y_stride;
  product.epilogue = epilogue_of(instruction, first_row, product.y_stride);
  kernel_.multiply_groups(product, group, first_tile, std::min(first_tile + part.tiles, tiles));
}

void Run::compute_rows(const Instruction& instruction, const Part& part, int64_t task) const {
  const int64_t width = instruction.inputs;
  const int64_t first = task * part.panel;
  const int64_t rows = std::min(part.panel, rows_ - first);
  const auto given = [&](int64_t value) { return value == kNoValue ? nullptr : values(value); };
  const auto rows_of = [&](int64_t value) { return value == kNoValue ? nullptr : values(value) + first * width; };
  const float* const x = rows_of(instruction.x);
  float* const y = slot(instruction.y) + first * width;
  switch (instruction.operation) {
    case Operation::kRmsNorm:
      kernel_.rms_norm(x, width, rows, width, instruction.epsilon, given(instruction.weights), y, width);
      break;
    case Operation::kLayerNorm:
      kernel_.layer_norm(x, width, rows, width, instruction.epsilon, given(instruction.weights),
                         given(instruction.bias), y, width);
      break;
    default:
      kernel_.elementwise(x, rows_of(instruction.added), rows_of(instruction.multiplied), rows * width,
                          instruction.activation, instruction.factor, y);
  }
  for (const int64_t rounding : instruction.roundings) {
    round(rounding, first, rows);
  }
}

void Run::round(int64_t rounding, int64_t first_row, int64_t rows) const {
  const Rounding& made = program_.roundings[static_cast<size_t>(rounding)];
  const RoundedRows at = rounded(rounding, first_row);
  kernel_.round_rows(values(made.value) + first_row * made.inputs, made.inputs, rows, made.inputs, made.block,
                     const_cast<int8_t*>(at.values), const_cast<float*>(at.scales),
                     const_cast<int32_t*>(at.corrections));
}

}  // namespace pom::cpu
