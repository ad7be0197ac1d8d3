// Runs calls of pom::cuda::aggregate, with a gate or without, on the CPU, each with both orders of blocks and threads.
//
// A call on stdin is a line
//   FORM MODE ROTARY_BLOCKS EPSILON BATCH TOKENS CHANNELS DEGREE MASK_BATCH ROTATION_BATCH
//   X_TYPE COEFFICIENT_TYPE MASK_TYPE ROTATION_TYPE SHIFT TABLE_SHIFT SKIPPED_BARRIER
//   GATE_ACTIVATION GATE_TOKENS GATES BIAS_TYPE
// (without the breaks) and then the bytes of x, gate, gate_bias, coefficients (form power), mask, cos and sin; y or z
// leaves on stdout. MASK_BATCH -1: no mask; ROTATION_BATCH -1: no cos and sin; GATE_TOKENS -1: no gate. Types are
// pom::DataType's numbers. SHIFT: bytes that x, gate and the output lie off alignment; TABLE_SHIFT: the same of cos and
// sin. SKIPPED_BARRIER: see cuda_emulation.h. Output and workspace are NaN at first. The first failure ends the
// program, and the last line of a call on stderr is the one that failed.
#include <sanitizer/asan_interface.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "aggregate_cuda.h"
#include "cuda_emulation.h"

namespace {

using pom::cuda::emulation::Order;

constexpr std::size_t kAlignment = 256;  // cudaMalloc's
constexpr std::size_t kGuardBytes = 64 * 1024;
constexpr char kGuard = 0x5A;
constexpr int kNanByte = 0xFF;  // a NaN in every float type

// A tensor, and behind its last byte a guard: a step into it stops the address sanitizer, and without that is seen
// afterwards where it changed the guard.
class Buffer {
 public:
  Buffer(std::size_t bytes, std::size_t shift) : bytes_(bytes), shift_(shift) {
    void* memory = nullptr;
    if (posix_memalign(&memory, kAlignment, shift + bytes + kGuardBytes) != 0) {
      throw std::bad_alloc();
    }
    memory_.reset(static_cast<char*>(memory));
    std::memset(data(), kNanByte, bytes_);
    std::memset(guard(), kGuard, kGuardBytes);
    ASAN_POISON_MEMORY_REGION(guard(), kGuardBytes);
  }

  [[nodiscard]] char* data() const { return memory_.get() + shift_; }
  [[nodiscard]] std::string text() const { return {data(), bytes_}; }

  void read() const {
    if (!std::cin.read(data(), static_cast<std::streamsize>(bytes_))) {
      throw std::runtime_error("stdin is too short");
    }
  }

  void check_guard() const {
    ASAN_UNPOISON_MEMORY_REGION(guard(), kGuardBytes);
    if (std::any_of(guard(), guard() + kGuardBytes, [](char byte) { return byte != kGuard; })) {
      throw std::runtime_error("a write behind a buffer");
    }
    ASAN_POISON_MEMORY_REGION(guard(), kGuardBytes);
  }

 private:
  [[nodiscard]] char* guard() const { return data() + bytes_; }

  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  std::size_t bytes_;
  std::size_t shift_;
  std::unique_ptr<char, Free> memory_;
};

struct Test {
  pom::Problem problem;
  std::optional<pom::Gate> gate;
  std::size_t shift = 0;
  std::size_t table_shift = 0;
  int32_t skipped_barrier = -1;
};

std::size_t bytes_of(int64_t elements, pom::DataType type) {
  const std::size_t size = type == pom::DataType::kFloat32 ? 4 : type == pom::DataType::kBool ? 1 : 2;
  return static_cast<std::size_t>(elements) * size;
}

std::optional<pom::Gate> parse_gate(std::istream* words) {
  pom::Gate gate;
  std::string activation;
  int32_t bias_type = 0;
  *words >> activation >> gate.tokens >> gate.gates >> bias_type;
  if (!*words || !pom::parse_gate_activation(activation, &gate.activation)) {
    throw std::runtime_error("not a call");
  }
  gate.bias_type = static_cast<pom::DataType>(bias_type);
  return gate.tokens < 0 ? std::nullopt : std::make_optional(gate);
}

Test parse_test(const std::string& line) {
  Test test;
  pom::Problem& problem = test.problem;
  pom::Attributes& attributes = problem.attributes;
  std::istringstream words(line);
  std::string form;
  std::string mode;
  words >> form >> mode >> attributes.rotary_blocks >> attributes.epsilon;
  words >> problem.batch >> problem.tokens >> problem.channels >> problem.degree;
  words >> problem.mask_batch >> problem.rotation_batch;
  for (pom::DataType* type :
       {&problem.data_type, &problem.coefficient_type, &problem.mask_type, &problem.rotation_type}) {
    int32_t number = 0;
    words >> number;
    *type = static_cast<pom::DataType>(number);
  }
  words >> test.shift >> test.table_shift >> test.skipped_barrier;
  if (!words || !pom::parse_form(form, &attributes.form) || !pom::parse_mode(mode, &attributes.mode)) {
    throw std::runtime_error("not a call");
  }
  test.gate = parse_gate(&words);
  attributes.degree = attributes.form == pom::Form::kProduct ? static_cast<int32_t>(problem.degree) : 0;
  problem.has_mask = problem.mask_batch >= 0;
  problem.has_rotation = problem.rotation_batch >= 0;
  if (const std::string error = pom::validate(problem); !error.empty()) {
    throw std::runtime_error(error);
  }
  return test;
}

std::string run_once(const Test& test, const pom::cuda::Buffers& inputs, Order order) {
  const pom::Problem& problem = test.problem;
  const int64_t tokens = test.gate ? test.gate->tokens : problem.output_tokens();
  const Buffer output(bytes_of(problem.batch * tokens * problem.channels, problem.data_type), test.shift);
  const Buffer workspace(pom::cuda::workspace_bytes(problem, test.gate), 0);
  pom::cuda::Buffers buffers = inputs;
  buffers.output = output.data();
  buffers.workspace = workspace.data();
  pom::cuda::emulation::set_order(order);
  if (const cudaError_t status = pom::cuda::aggregate(problem, test.gate, buffers, nullptr); status != cudaSuccess) {
    throw std::runtime_error("aggregate returned " + std::to_string(status));
  }
  output.check_guard();
  workspace.check_guard();
  return output.text();
}

std::string run(const Test& test) {
  const pom::Problem& problem = test.problem;
  const bool has_coefficients = problem.attributes.form == pom::Form::kPower;
  const int64_t weights = problem.has_mask ? problem.mask_batch * problem.tokens : 0;
  const int64_t angles = problem.has_rotation ? problem.rotation_batch * problem.tokens * problem.channels / 2 : 0;
  const Buffer x(bytes_of(problem.batch * problem.tokens * problem.channels, problem.data_type), test.shift);
  const pom::Gate gate = test.gate.value_or(pom::Gate{});
  const Buffer gates(bytes_of(problem.batch * gate.tokens * gate.gates, problem.data_type), test.shift);
  const Buffer bias(bytes_of(gate.gates, gate.bias_type), 0);
  const Buffer coefficients(
      bytes_of(has_coefficients ? problem.channels * problem.degree : 0, problem.coefficient_type), 0);
  const Buffer mask(bytes_of(weights, problem.mask_type), 0);
  const Buffer cos(bytes_of(angles, problem.rotation_type), test.table_shift);
  const Buffer sin(bytes_of(angles, problem.rotation_type), test.table_shift);
  const std::vector<const Buffer*> inputs{&x, &gates, &bias, &coefficients, &mask, &cos, &sin};
  std::for_each(inputs.begin(), inputs.end(), [](const Buffer* buffer) { buffer->read(); });
  std::vector<const void*> pointers{x.data()};
  if (test.gate) {
    pointers.insert(pointers.end(), {gates.data(), bias.data()});
  }
  pointers.insert(pointers.end(), {coefficients.data(), mask.data(), cos.data(), sin.data()});
  const pom::cuda::Buffers buffers = pom::cuda::bind_inputs(problem, test.gate.has_value(), pointers.data());
  pom::cuda::emulation::skip_barrier(test.skipped_barrier);
  std::string forward = run_once(test, buffers, Order::kForward);
  if (forward != run_once(test, buffers, Order::kShuffled)) {
    throw std::runtime_error("the order of blocks and threads changes the output");
  }
  std::for_each(inputs.begin(), inputs.end(), [](const Buffer* buffer) { buffer->check_guard(); });
  return forward;
}

}  // namespace

int main() {
  try {
    for (std::string line; std::getline(std::cin, line);) {
      std::cerr << line << std::endl;
      const std::string y = run(parse_test(line));
      if (!std::cout.write(y.data(), static_cast<std::streamsize>(y.size()))) {
        throw std::runtime_error("stdout is closed");
      }
    }
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return EXIT_FAILURE;
  }
  return std::cout.flush() ? EXIT_SUCCESS : EXIT_FAILURE;
}
