// Compares the dispatched CPU kernel with the same arithmetic in double, for every mode, form and type, with and
// without mask, gate and state, and one thread with three threads. Prints the kernel's name and the number of calls;
// fails at the first error.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cpu/aggregation.h"
#include "cpu/dispatch.h"
#include "cpu/element.h"

namespace {

using pom::DataType;
using pom::Form;
using pom::GateActivation;
using pom::Mode;

// A tensor of any type, and its values in double.
struct Tensor {
  Tensor(DataType data_type, const std::vector<double>& wanted)
      : type(data_type), bytes(wanted.size() * static_cast<size_t>(pom::cpu::element_size(data_type)) + 1) {
    for (size_t i = 0; i < wanted.size(); ++i) {
      if (type == DataType::kBool) {
        bytes[i] = wanted[i] != 0.0 ? 1 : 0;
      } else {
        pom::cpu::set_element(bytes.data(), type, static_cast<int64_t>(i), static_cast<float>(wanted[i]));
      }
      values.push_back(static_cast<double>(pom::cpu::element(bytes.data(), type, static_cast<int64_t>(i))));
    }
  }
  DataType type;
  std::vector<char> bytes;
  std::vector<double> values;
};

struct Call {
  pom::Problem problem;
  bool gated;
  pom::Gate gate;

  [[nodiscard]] int64_t output_tokens() const { return gated ? gate.tokens : problem.output_tokens(); }
};

struct Inputs {
  explicit Inputs(const Call& call)
      : x(call.problem.data_type, random(call.problem.batch * call.problem.tokens * call.problem.channels, 2.0)),
        mask(DataType::kBool, kept(call.problem.batch * call.problem.tokens)),
        cos(call.problem.rotation_type, random(call.problem.tokens * call.problem.channels / 2, 1.0)),
        sin(call.problem.rotation_type, random(call.problem.tokens * call.problem.channels / 2, 1.0)),
        gate(call.problem.data_type, random(call.problem.batch * call.gate.tokens * call.gate.gates, 3.0)),
        bias(DataType::kFloat32, random(call.gate.gates, 1.0)),
        coefficients(DataType::kFloat32, random(call.problem.channels * call.problem.degree, 0.3)),
        past_state(DataType::kFloat32, random(call.problem.batch * pom::kStateRows * call.problem.channels, 1.0)),
        past_length(static_cast<size_t>(call.problem.batch), 5) {}

  // The sum that a stateful call continues from.
  [[nodiscard]] double past_sum(const pom::Problem& problem, int64_t batch, int64_t channel) const {
    const int64_t first = batch * pom::kStateRows * problem.channels + channel;
    return past_state.values[static_cast<size_t>(first)] +
           past_state.values[static_cast<size_t>(first + problem.channels)];
  }

  static std::vector<double> random(int64_t count, double size) {
    static std::mt19937 generator(1);
    std::normal_distribution<double> normal(0.0, size);
    std::vector<double> values(static_cast<size_t>(count));
    std::generate(values.begin(), values.end(), [&] { return normal(generator); });
    return values;
  }
  static std::vector<double> kept(int64_t count) {
    std::vector<double> values = random(count, 1.0);
    std::transform(values.begin(), values.end(), values.begin(), [](double value) { return value > -0.5 ? 1.0 : 0.0; });
    return values;
  }

  Tensor x, mask, cos, sin, gate, bias, coefficients, past_state;
  std::vector<int64_t> past_length;
};

std::vector<double> features(const pom::Problem& problem, const Inputs& inputs, const double* x, int64_t token) {
  const int64_t channels = problem.channels;
  std::vector<double> p(static_cast<size_t>(channels));
  for (int64_t c = 0; c < channels; ++c) {
    const auto i = static_cast<size_t>(c);
    if (problem.attributes.form == Form::kProduct) {
      const int64_t width = problem.chunk_channels();
      const double gelu = x[c] * (1.0 + std::erf(x[c] / std::sqrt(2.0))) / 2.0;
      p[i] = c < width ? gelu : gelu * p[static_cast<size_t>(c - width)];
      continue;
    }
    const double h = std::clamp(x[c] >= 0.0 ? x[c] : 0.01 * x[c], -0.1, 6.0);
    for (int64_t k = problem.degree; k > 0; --k) {
      p[i] = (p[i] + inputs.coefficients.values[static_cast<size_t>(c * problem.degree + k - 1)]) * h;
    }
  }
  const int64_t width = channels / problem.attributes.rotary_blocks / 2;
  for (int64_t pair = 0; problem.has_rotation && pair < channels / 2; ++pair) {
    const auto first = static_cast<size_t>(pair / width * 2 * width + pair % width);
    const auto second = first + static_cast<size_t>(width);
    const auto entry = static_cast<size_t>(token * channels / 2 + pair);
    const double cosine = inputs.cos.values[entry];
    const double sine = inputs.sin.values[entry];
    const double rotated = p[first] * cosine - p[second] * sine;
    p[second] = p[second] * cosine + p[first] * sine;
    p[first] = rotated;
  }
  return p;
}

double activated(GateActivation activation, double z) {
  switch (activation) {
    case GateActivation::kSigmoid:
      return 1.0 / (1.0 + std::exp(-z));
    case GateActivation::kHardSigmoid:
      return std::clamp(z / 6.0 + 0.5, 0.0, 1.0);
    default:
      return z;
  }
}

// The expected results of a call: y, and for a stateful one the sums and lengths that it leaves.
struct Expected {
  std::vector<double> y;
  std::vector<double> sums;
  std::vector<int64_t> lengths;
};

Expected expected_of(const Call& call, const Inputs& inputs) {
  const pom::Problem& problem = call.problem;
  const int64_t channels = problem.channels;
  Expected expected;
  for (int64_t batch = 0; batch < problem.batch; ++batch) {
    std::vector<double> rows;
    std::vector<double> sum(static_cast<size_t>(channels));
    double weights = 0.0;
    if (problem.attributes.stateful) {
      weights = static_cast<double>(inputs.past_length[static_cast<size_t>(batch)]);
      for (int64_t c = 0; c < channels; ++c) {
        sum[static_cast<size_t>(c)] = inputs.past_sum(problem, batch, c);
      }
    }
    for (int64_t token = 0; token < problem.tokens; ++token) {
      const auto row = static_cast<size_t>(batch * problem.tokens + token);
      const double* x = inputs.x.values.data() + row * static_cast<size_t>(channels);
      const std::vector<double> p = features(problem, inputs, x, token);
      const double weight = problem.has_mask ? inputs.mask.values[row] : 1.0;
      weights += weight;
      for (size_t c = 0; c < p.size(); ++c) {
        sum[c] += weight * p[c];
        rows.push_back(problem.attributes.mode == Mode::kFeatures ? p[c] : weights == 0.0 ? 0.0 : sum[c] / weights);
      }
    }
    const int64_t last = (problem.tokens - 1) * channels;
    for (int64_t i = 0; i < call.output_tokens() * channels; ++i) {
      const int64_t c = i % channels;
      const double mean = rows[static_cast<size_t>(problem.attributes.mode == Mode::kMean ? last + c : i)];
      const int64_t head = c / (channels / call.gate.gates);
      const int64_t entry = (batch * call.gate.tokens + i / channels) * call.gate.gates + head;
      expected.y.push_back(
          !call.gated ? mean
                      : mean * activated(call.gate.activation, inputs.gate.values[static_cast<size_t>(entry)] +
                                                                   inputs.bias.values[static_cast<size_t>(head)]));
    }
    expected.sums.insert(expected.sums.end(), sum.begin(), sum.end());
    expected.lengths.push_back(static_cast<int64_t>(weights));
  }
  return expected;
}

struct Outputs {
  std::vector<char> y;
  std::vector<float> state;
  std::vector<int64_t> length;

  bool operator==(const Outputs& other) const { return y == other.y && state == other.state && length == other.length; }
};

Outputs run(const Call& call, const Inputs& inputs, int threads) {
  const pom::Problem& problem = call.problem;
  const pom::cpu::Coefficients coefficients(inputs.coefficients.bytes.data(), DataType::kFloat32, problem.channels,
                                            problem.degree);
  const std::unique_ptr<float[]> bias =
      pom::cpu::as_floats(inputs.bias.bytes.data(), DataType::kFloat32, call.gate.gates);
  const int64_t count = problem.batch * call.output_tokens() * problem.channels;
  Outputs outputs;
  outputs.y.resize(static_cast<size_t>(count * pom::cpu::element_size(problem.data_type)));
  pom::cpu::Tensors tensors{inputs.x.bytes.data(),   inputs.mask.bytes.data(), inputs.cos.bytes.data(),
                            inputs.sin.bytes.data(), inputs.gate.bytes.data(), bias.get(),
                            outputs.y.data()};
  if (problem.attributes.stateful) {
    outputs.state.resize(inputs.past_state.values.size());
    outputs.length.resize(inputs.past_length.size());
    tensors.past_state = reinterpret_cast<const float*>(inputs.past_state.bytes.data());
    tensors.past_length = inputs.past_length.data();
    tensors.present_state = outputs.state.data();
    tensors.present_length = outputs.length.data();
  }
  pom::cpu::Aggregation aggregation(*pom::cpu::dispatch().kernel, problem, call.gated ? &call.gate : nullptr, tensors,
                                    coefficients);
  for (int phase = 0; phase < aggregation.phases(); ++phase) {
    std::vector<std::thread> workers;
    for (int i = 1; i < threads; ++i) {
      workers.emplace_back([&] { aggregation.run(phase); });
    }
    aggregation.run(phase);
    for (std::thread& worker : workers) {
      worker.join();
    }
  }
  return outputs;
}

// The errors of a call, relative to its largest expected value.
class Errors {
 public:
  void add(double value, double expected) {
    largest_ = std::max(largest_, std::abs(expected));
    error_ = std::isnan(value) ? INFINITY : std::max(error_, std::abs(value - expected));
  }
  void check(double bound, const Call& call, const std::string& what) const {
    if (error_ > largest_ * bound) {
      throw std::logic_error("an error of " + std::to_string(error_ / largest_) + " of the largest " + what +
                             " in mode " + pom::kModes[static_cast<size_t>(call.problem.attributes.mode)] + ", form " +
                             pom::kForms[static_cast<size_t>(call.problem.attributes.form)] + ", " +
                             pom::name_of(call.problem.data_type) + (call.gated ? ", gated" : ""));
    }
  }

 private:
  double largest_ = 0.0;
  double error_ = 0.0;
};

void check_state(const Call& call, const Outputs& made, const Expected& expected) {
  Errors errors;
  const int64_t channels = call.problem.channels;
  for (size_t i = 0; i < expected.sums.size(); ++i) {
    const auto entry = static_cast<int64_t>(i);
    const auto first = static_cast<size_t>(entry / channels * pom::kStateRows * channels + entry % channels);
    const auto rest = static_cast<double>(made.state[first + static_cast<size_t>(channels)]);
    errors.add(static_cast<double>(made.state[first]) + rest, expected.sums[i]);
  }
  errors.check(2e-6, call, "sum of a state");
  if (made.length != expected.lengths) {
    throw std::logic_error("a state has another length than its tokens");
  }
}

void check(const Call& call) {
  if (const std::string error = validate(call.problem); !error.empty()) {
    throw std::logic_error(error);
  }
  const Inputs inputs(call);
  const Outputs made = run(call, inputs, 1);
  if (!(run(call, inputs, 3) == made)) {
    throw std::logic_error("three threads give other bits than one");
  }
  const Expected expected = expected_of(call, inputs);
  Errors errors;
  for (size_t i = 0; i < expected.y.size(); ++i) {
    errors.add(static_cast<double>(pom::cpu::element(made.y.data(), call.problem.data_type, static_cast<int64_t>(i))),
               expected.y[i]);
  }
  // The error of one rounding to the type, and of a few roundings to float32.
  const double places[] = {0.0, 0x1p-11, 0x1p-8};
  errors.check(2e-6 + places[static_cast<size_t>(call.problem.data_type)], call, "output");
  if (call.problem.attributes.stateful) {
    check_state(call, made, expected);
  }
}

// Form 0 is the plain power, 1 and 2 are rotated in that many blocks, and 3 is the product.
Call call_of(Mode mode, int form, DataType type, bool masked, int64_t tokens, int64_t channels) {
  Call call{};
  pom::Problem& problem = call.problem;
  problem.attributes.mode = mode;
  problem.batch = 2;
  problem.tokens = tokens;
  problem.channels = channels;
  problem.degree = 3;
  problem.data_type = type;
  problem.has_mask = masked;
  problem.mask_batch = masked ? problem.batch : 0;
  problem.has_rotation = form == 1 || form == 2;
  problem.rotation_batch = 1;
  problem.rotation_type = form == 1 ? type : DataType::kFloat32;
  problem.attributes.rotary_blocks = form == 2 ? 2 : 1;
  if (form == 3) {
    problem.attributes.form = Form::kProduct;
    problem.attributes.degree = 3;
  }
  call.gate.tokens = tokens;
  call.gate.gates = 1;
  return call;
}

int check_all() {
  int calls = 0;
  for (const Mode mode : {Mode::kMean, Mode::kCausal, Mode::kFeatures}) {
    for (const DataType type : {DataType::kFloat32, DataType::kFloat16, DataType::kBFloat16}) {
      for (int variant = 0; variant < (mode == Mode::kFeatures ? 16 : 32); ++variant) {
        const bool masked = variant % 2 == 1 && mode != Mode::kFeatures;
        const bool few = variant / 8 % 2 == 0;
        Call call = call_of(mode, variant / 2 % 4, type, masked, few ? 21 : 700, few ? 84 : 36);
        call.problem.attributes.stateful = variant / 16 == 1;
        check(call);
        ++calls;
        for (int gate = 0; gate < 6 && mode != Mode::kFeatures; ++gate, ++calls) {
          call.gated = true;
          call.gate.activation = static_cast<GateActivation>(gate % 3);
          call.gate.gates = gate < 3 ? call.problem.channels : 6;
          check(call);
        }
      }
    }
  }
  return calls;
}

}  // namespace

int main() {
  try {
    const pom::cpu::Dispatch dispatch = pom::cpu::dispatch();
    if (dispatch.kernel == nullptr) {
      throw std::logic_error(dispatch.error);
    }
    const int calls = check_all();
    std::printf("%s %d\n", dispatch.kernel->name, calls);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "check_kernel: %s\n", error.what());
    return 1;
  }
}
