// Runs one call of pom::cuda::aggregate on the CPU.
//
//   run_aggregate MODE EPSILON BATCH TOKENS CHANNELS DEGREE MASK_BATCH X_TYPE COEFFICIENT_TYPE MASK_TYPE SHIFT ORDER
//
// MASK_BATCH -1: no mask. Types are pom::DataType's numbers. SHIFT: bytes that x and y lie off alignment. ORDER: see
// cuda_emulation.h. x, coefficients and mask come as bytes on stdin, y leaves on stdout. Output and workspace are NaN
// at first, and every buffer ends where its tensor ends, so that the address sanitizer sees a step outside.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "aggregate_cuda.h"
#include "cuda_emulation.h"

namespace {

constexpr std::size_t kAlignment = 256;  // cudaMalloc's
constexpr int kNanByte = 0xFF;           // a NaN in every float type

class Buffer {
 public:
  Buffer(std::size_t bytes, std::size_t shift) : bytes_(bytes), shift_(shift) {
    void* memory = nullptr;
    if (posix_memalign(&memory, kAlignment, bytes + shift) != 0) {
      throw std::bad_alloc();
    }
    memory_.reset(static_cast<char*>(memory));
    std::memset(data(), kNanByte, bytes_);
  }

  [[nodiscard]] char* data() const { return memory_.get() + shift_; }

  void read() const {
    if (std::fread(data(), 1, bytes_, stdin) != bytes_) {
      throw std::runtime_error("stdin is too short");
    }
  }
  void write() const {
    if (std::fwrite(data(), 1, bytes_, stdout) != bytes_) {
      throw std::runtime_error("stdout is closed");
    }
  }

 private:
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  std::size_t bytes_;
  std::size_t shift_;
  std::unique_ptr<char, Free> memory_;
};

std::size_t size_of(pom::DataType type) {
  return type == pom::DataType::kFloat32 ? 4 : type == pom::DataType::kBool ? 1 : 2;
}

std::size_t bytes_of(int64_t elements, pom::DataType type) {
  return static_cast<std::size_t>(elements) * size_of(type);
}

pom::DataType data_type(const char* text) { return static_cast<pom::DataType>(std::atoi(text)); }

pom::Problem read_problem(char** arguments) {
  pom::Problem problem;
  if (!pom::parse_mode(arguments[0], &problem.attributes.mode)) {
    throw std::runtime_error("unknown mode");
  }
  problem.attributes.epsilon = std::strtof(arguments[1], nullptr);
  problem.batch = std::atoll(arguments[2]);
  problem.tokens = std::atoll(arguments[3]);
  problem.channels = std::atoll(arguments[4]);
  problem.degree = std::atoll(arguments[5]);
  problem.mask_batch = std::atoll(arguments[6]);
  problem.has_mask = problem.mask_batch >= 0;
  problem.data_type = data_type(arguments[7]);
  problem.coefficient_type = data_type(arguments[8]);
  problem.mask_type = data_type(arguments[9]);
  if (const std::string error = pom::validate(problem); !error.empty()) {
    throw std::runtime_error(error);
  }
  return problem;
}

void run(const pom::Problem& problem, std::size_t shift) {
  const int64_t row = problem.tokens * problem.channels;
  const int64_t outputs = problem.batch * problem.output_tokens() * problem.channels;
  const int64_t weights = problem.has_mask ? problem.mask_batch * problem.tokens : 0;
  const Buffer x(bytes_of(problem.batch * row, problem.data_type), shift);
  const Buffer coefficients(bytes_of(problem.channels * problem.degree, problem.coefficient_type), 0);
  const Buffer mask(bytes_of(weights, problem.mask_type), 0);
  const Buffer y(bytes_of(outputs, problem.data_type), shift);
  const Buffer workspace(pom::cuda::workspace_bytes(problem), 0);
  x.read();
  coefficients.read();
  mask.read();
  const cudaError_t status = pom::cuda::aggregate(
      problem, {x.data(), coefficients.data(), problem.has_mask ? mask.data() : nullptr, y.data(), workspace.data()},
      nullptr);
  if (status != cudaSuccess) {
    throw std::runtime_error("aggregate returned " + std::to_string(status));
  }
  y.write();
}

}  // namespace

int main(int count, char** arguments) {
  try {
    if (count != 13) {
      throw std::runtime_error("expected 12 arguments");
    }
    pom::cuda::emulation::set_order(static_cast<pom::cuda::emulation::Order>(std::atoi(arguments[12])));
    run(read_problem(arguments + 1), static_cast<std::size_t>(std::atoi(arguments[11])));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return EXIT_FAILURE;
  }
  return EXIT_SUCCESS;
}
