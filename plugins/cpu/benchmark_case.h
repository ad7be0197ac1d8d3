// One case of the benchmark: a call of the op, and its tensors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "aggregation.h"
#include "benchmark_pool.h"
#include "dispatch.h"
#include "element.h"

// By name, so that callgrind finds it.
extern "C" __attribute__((noinline)) inline void measured_call(pom::cpu::Aggregation* aggregation, int phase) {
  aggregation->run(phase);
}

namespace pom::cpu {

// Aligned as frameworks align their tensors.
struct alignas(64) Line {
  uint64_t words[8];
};

struct Options {
  std::string name;
  bool once = false;
  int threads = 2;
  int runs = 21;
  int64_t batch = 1;
  int64_t tokens = 0;  // 0: the default of cold or hot
  int64_t channels = 1024;
  int64_t degree = 3;
};

struct Case {
  Case(const Options& options, const std::string& name, int64_t tokens) {
    const size_t end = name.rfind('-');
    const std::string type = end == std::string::npos ? "" : name.substr(end + 1);
    const bool gated_name = name.rfind("gated-", 0) == 0;
    const std::string mode = name.substr(gated_name ? 6 : 0, end - (gated_name ? 6 : 0));
    gated = gated_name;
    if (!parse_mode(mode, &problem.attributes.mode) || mode == "features") {
      throw std::invalid_argument("no case \"" + name + "\"");
    }
    for (const DataType each : {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16}) {
      known = known || type == name_of(each);
      problem.data_type = type == name_of(each) ? each : problem.data_type;
    }
    problem.batch = options.batch;
    problem.tokens = tokens;
    problem.channels = options.channels;
    problem.degree = options.degree;
    if (const std::string error = known ? validate(problem) : "no type \"" + type + "\""; !error.empty()) {
      throw std::invalid_argument(error);
    }
    gate.activation = GateActivation::kHardSigmoid;
    gate.tokens = tokens;
    gate.gates = options.channels;
    fill();
  }

  [[nodiscard]] int64_t elements() const { return problem.batch * problem.tokens * problem.channels; }
  [[nodiscard]] bool writes() const { return gated || problem.attributes.mode == Mode::kCausal; }

  void run(Pool* pool) {
    const Tensors tensors{x.data(), nullptr, nullptr, nullptr, gates.data(), bias.data(), y.data()};
    Aggregation aggregation(*kernel, problem, gated ? &gate : nullptr, tensors, coefficients);
    for (int phase = 0; phase < aggregation.phases(); ++phase) {
      if (pool == nullptr) {
        measured_call(&aggregation, phase);
      } else {
        pool->run([&](int) { measured_call(&aggregation, phase); });
      }
    }
  }

  Problem problem;
  Gate gate;
  bool gated = false;
  bool known = false;
  const Kernel* kernel = dispatch().kernel;
  Coefficients coefficients;
  std::vector<float> bias;
  std::vector<Line> x;
  std::vector<Line> gates;
  std::vector<Line> y;

 private:
  void fill() {
    if (kernel == nullptr) {
      throw std::invalid_argument(dispatch().error);
    }
    const std::vector<float> values(static_cast<size_t>(problem.channels * problem.degree), 0.25F);
    coefficients = Coefficients(values.data(), DataType::kFloat32, problem.channels, problem.degree);
    bias.assign(static_cast<size_t>(problem.channels), 0.5F);
    const auto lines_of = [&](int64_t count) {
      return static_cast<size_t>(count * element_size(problem.data_type) / static_cast<int64_t>(sizeof(Line)) + 1);
    };
    x.resize(lines_of(elements()));
    y.resize(lines_of(writes() ? elements() : problem.batch * problem.channels));
    for (int64_t i = 0; i < elements(); ++i) {
      set_element(x.data(), problem.data_type, i, static_cast<float>(i * 37 % 101 - 50) / 16.0F);
    }
    if (gated) {
      gates = x;
    }
  }
};

}  // namespace pom::cpu
