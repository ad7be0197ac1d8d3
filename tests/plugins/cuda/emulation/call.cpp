#include "call.h"

#include <sanitizer/asan_interface.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <new>
#include <numeric>
#include <sstream>
#include <stdexcept>

namespace pom::test {
namespace {

constexpr std::size_t kAlignment = 256;  // cudaMalloc's
constexpr std::size_t kGuardBytes = 64 * 1024;
constexpr char kGuard = 0x5A;
constexpr int kNanByte = 0xFF;

std::optional<Gate> parse_gate(std::istream* words) {
  Gate gate;
  std::string activation;
  int32_t bias_type = 0;
  *words >> activation >> gate.tokens >> gate.gates >> bias_type;
  if (!*words || !parse_gate_activation(activation, &gate.activation)) {
    throw std::runtime_error("not a call");
  }
  gate.bias_type = static_cast<DataType>(bias_type);
  return gate.tokens < 0 ? std::nullopt : std::make_optional(gate);
}

Call parse_call(const std::string& line) {
  Call call;
  Problem& problem = call.problem;
  Attributes& attributes = problem.attributes;
  std::istringstream words(line);
  std::string form;
  std::string mode;
  words >> form >> mode >> attributes.rotary_blocks >> attributes.epsilon;
  words >> problem.batch >> problem.tokens >> problem.channels >> problem.degree;
  words >> problem.mask_batch >> problem.rotation_batch;
  for (DataType* type : {&problem.data_type, &problem.coefficient_type, &problem.mask_type, &problem.rotation_type}) {
    int32_t number = 0;
    words >> number;
    *type = static_cast<DataType>(number);
  }
  words >> call.shift >> call.table_shift >> call.skipped_barrier;
  if (!words || !parse_form(form, &attributes.form) || !parse_mode(mode, &attributes.mode)) {
    throw std::runtime_error("not a call");
  }
  call.gate = parse_gate(&words);
  words >> attributes.stateful;
  attributes.degree = attributes.form == Form::kProduct ? static_cast<int32_t>(problem.degree) : 0;
  problem.has_mask = problem.mask_batch >= 0;
  problem.has_rotation = problem.rotation_batch >= 0;
  if (const std::string error = validate(problem); !error.empty()) {
    throw std::runtime_error(error);
  }
  return call;
}

}  // namespace

Buffer::Buffer(std::size_t bytes, std::size_t shift) : bytes_(bytes), shift_(shift) {
  void* memory = nullptr;
  if (posix_memalign(&memory, kAlignment, shift + bytes + kGuardBytes) != 0) {
    throw std::bad_alloc();
  }
  memory_.reset(static_cast<char*>(memory));
  std::memset(data(), kNanByte, bytes_);
  std::memset(guard(), kGuard, kGuardBytes);
  ASAN_POISON_MEMORY_REGION(guard(), kGuardBytes);
}

void Buffer::read(std::istream* in) const {
  if (!in->read(data(), static_cast<std::streamsize>(bytes_))) {
    throw std::runtime_error("stdin is too short");
  }
}

void Buffer::check_guard() const {
  ASAN_UNPOISON_MEMORY_REGION(guard(), kGuardBytes);
  if (std::any_of(guard(), guard() + kGuardBytes, [](char byte) { return byte != kGuard; })) {
    throw std::runtime_error("a write behind a buffer");
  }
  ASAN_POISON_MEMORY_REGION(guard(), kGuardBytes);
}

std::size_t bytes_of(int64_t elements, DataType type) {
  constexpr std::array<std::size_t, 5> kSizes{4, 2, 2, 1, 8};
  return static_cast<std::size_t>(elements) * kSizes[static_cast<std::size_t>(type)];
}

std::vector<const void*> Call::pointers() const {
  std::vector<const void*> all;
  std::transform(inputs.begin(), inputs.end(), std::back_inserter(all), [](const Buffer& b) { return b.data(); });
  return all;
}

void Call::check_guards() const {
  std::for_each(inputs.begin(), inputs.end(), [](const Buffer& buffer) { buffer.check_guard(); });
}

Outputs::Outputs(const Call& call) {
  const Problem& problem = call.problem;
  const int64_t tokens = call.gate ? call.gate->tokens : problem.output_tokens();
  buffers_.emplace_back(bytes_of(problem.batch * tokens * problem.channels, problem.data_type), call.shift);
  if (problem.attributes.stateful) {
    buffers_.emplace_back(bytes_of(problem.batch * kStateRows * problem.channels, DataType::kFloat32), 0);
    buffers_.emplace_back(bytes_of(problem.batch, DataType::kInt64), 0);
  }
}

std::vector<void*> Outputs::pointers() const {
  std::vector<void*> all;
  std::transform(buffers_.begin(), buffers_.end(), std::back_inserter(all), [](const Buffer& b) { return b.data(); });
  return all;
}

std::string Outputs::text() const {
  return std::accumulate(buffers_.begin(), buffers_.end(), std::string(),
                         [](const std::string& text, const Buffer& buffer) { return text + buffer.text(); });
}

void Outputs::check_guards() const {
  std::for_each(buffers_.begin(), buffers_.end(), [](const Buffer& buffer) { buffer.check_guard(); });
}

Call read_call(const std::string& line, std::istream* in) {
  Call call = parse_call(line);
  const Problem& problem = call.problem;
  const int64_t angles = problem.has_rotation ? problem.rotation_batch * problem.tokens * problem.channels / 2 : 0;
  const auto add = [&](int64_t elements, DataType type, std::size_t shift) {
    call.inputs.emplace_back(bytes_of(elements, type), shift);
  };
  add(problem.batch * problem.tokens * problem.channels, problem.data_type, call.shift);
  if (call.gate) {
    add(problem.batch * call.gate->tokens * call.gate->gates, problem.data_type, call.shift);
    add(call.gate->gates, call.gate->bias_type, 0);
  }
  const bool has_coefficients = problem.attributes.form == Form::kPower;
  add(has_coefficients ? problem.channels * problem.degree : 0, problem.coefficient_type, 0);
  add(problem.has_mask ? problem.mask_batch * problem.tokens : 0, problem.mask_type, 0);
  add(angles, problem.rotation_type, call.table_shift);
  add(angles, problem.rotation_type, call.table_shift);
  if (problem.attributes.stateful) {
    add(problem.batch * kStateRows * problem.channels, DataType::kFloat32, 0);
    add(problem.batch, DataType::kInt64, 0);
  }
  std::for_each(call.inputs.begin(), call.inputs.end(), [&](const Buffer& buffer) { buffer.read(in); });
  return call;
}

int serve_calls(std::string (*run)(const Call& call), const std::string& after) {
  try {
    for (std::string line; std::getline(std::cin, line);) {
      std::cerr << line << std::endl;
      const std::string y = run(read_call(line, &std::cin)) + after;
      if (!std::cout.write(y.data(), static_cast<std::streamsize>(y.size())).flush()) {
        throw std::runtime_error("stdout is closed");
      }
    }
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return EXIT_FAILURE;
  }
  return std::cout.flush() ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace pom::test
