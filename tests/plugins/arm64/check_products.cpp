// Compares the functions of every product kernel that this processor can run with the same arithmetic in double. Prints
// the kernels' names; fails at the first error.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/products/products.h"

namespace {

using pom::cpu::Activation;
using pom::cpu::kTileOutputs;
using pom::cpu::ProductKernel;

constexpr double kRounding = std::numeric_limits<float>::epsilon();

std::mt19937 generator(1);

std::vector<float> random(int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  std::generate(values.begin(), values.end(), [&] { return normal(generator); });
  return values;
}

void expect(double got, double expected, double allowed, const std::string& what) {
  if (!(std::abs(got - expected) <= allowed)) {
    throw std::runtime_error(what + ": got " + std::to_string(got) + ", expected " + std::to_string(expected));
  }
}

double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::kGelu:
      return x * (1.0 + std::erf(x / std::sqrt(2.0))) / 2.0;
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    default:
      return x;
  }
}

// Rounded activations and their product with random 4-bit weights.
void check_product(const ProductKernel& kernel, int64_t rows, int64_t inputs, int64_t outputs, int64_t block,
                   int64_t bits) {
  const int64_t blocks = (inputs + block - 1) / block;
  const int64_t tiles = (outputs + kTileOutputs - 1) / kTileOutputs;
  const std::vector<float> x = random(rows * inputs);
  std::vector<int8_t> values(static_cast<size_t>(rows * blocks * block), 99);
  std::vector<float> scales(static_cast<size_t>(rows * blocks));
  std::vector<int32_t> corrections(static_cast<size_t>(rows * blocks));
  kernel.round_rows(x.data(), inputs, rows, inputs, block, values.data(), scales.data(), corrections.data());
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t b = 0; b < blocks; ++b) {
      float peak = 0.0F;
      for (int64_t k = b * block; k < std::min(inputs, (b + 1) * block); ++k) {
        peak = std::max(peak, std::abs(x[static_cast<size_t>(row * inputs + k)]));
      }
      int32_t sum = 0;
      for (int64_t k = b * block; k < (b + 1) * block; ++k) {
        const float value = k < inputs ? x[static_cast<size_t>(row * inputs + k)] : 0.0F;
        const int got = values[static_cast<size_t>(row * blocks * block + k)];
        expect(got, std::nearbyint(value * (127.0F / peak)), 0.0, "rounded value");
        sum += got;
      }
      expect(scales[static_cast<size_t>(row * blocks + b)], peak / 127.0F, 0.0, "scale");
      expect(corrections[static_cast<size_t>(row * blocks + b)], -8 * sum, 0.0, "correction");
    }
  }
  const int64_t block_bytes = kTileOutputs * 4 + block * kTileOutputs * bits / 8;
  std::vector<uint8_t> weights(static_cast<size_t>(tiles * blocks * block_bytes));
  std::generate(weights.begin(), weights.end(), [&] { return static_cast<uint8_t>(generator() & 0xFFU); });
  const std::vector<float> weight_scales = random(tiles * blocks * kTileOutputs);
  for (int64_t i = 0; i < tiles * blocks; ++i) {
    const auto* from = reinterpret_cast<const uint8_t*>(weight_scales.data() + i * kTileOutputs);
    std::copy_n(from, kTileOutputs * 4, weights.begin() + i * block_bytes);
  }
  std::vector<float> y = random(rows * outputs);
  const std::vector<float> added = y;
  const std::vector<float> bias = random(outputs);
  const pom::cpu::Epilogue epilogue{bias.data(), Activation::kGelu, 0.5F, y.data(), outputs};
  const pom::cpu::Product product{{values.data(), scales.data(), corrections.data(), blocks * block, blocks},
                                  rows,
                                  weights.data(),
                                  bits,
                                  block,
                                  outputs,
                                  y.data(),
                                  outputs,
                                  epilogue};
  kernel.multiply(product, 0, tiles / 2);
  kernel.multiply(product, tiles / 2, tiles);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t n = 0; n < outputs; ++n) {
      double sum = 0.0;
      double magnitude = 0.0;
      for (int64_t k = 0; k < blocks * block; ++k) {
        const int64_t at = n / kTileOutputs * blocks + k / block;
        const int64_t inside = k % block;
        const int64_t inputs_of_chunk = 32 / bits;
        const uint8_t both = weights[static_cast<size_t>(
            at * block_bytes + kTileOutputs * 4 + inside / inputs_of_chunk * 64 + n % kTileOutputs * 4 + inside % 4)];
        const int weight = bits == 8 ? both - 128 : (inside % 8 < 4 ? both & 0xF : both >> 4) - 8;
        const double scale =
            static_cast<double>(weight_scales[static_cast<size_t>(at * kTileOutputs + n % kTileOutputs)]) *
            static_cast<double>(scales[static_cast<size_t>(row * blocks + k / block)]);
        const double term = weight * values[static_cast<size_t>(row * blocks * block + k)] * scale;
        sum += term;
        magnitude += std::abs(term);
      }
      const auto column = static_cast<size_t>(n);
      const auto at = static_cast<size_t>(row * outputs + n);
      const double expected =
          activated(Activation::kGelu, sum + static_cast<double>(bias[column])) * 0.5 + static_cast<double>(added[at]);
      expect(static_cast<double>(y[at]), expected, 8 * kRounding * (magnitude + 4), "product");
    }
  }
}

void check_groups(const ProductKernel& kernel, int64_t rows, int64_t groups, int64_t inputs, int64_t outputs) {
  const int64_t tiles = (outputs + kTileOutputs - 1) / kTileOutputs;
  const std::vector<float> x = random(rows * groups * inputs);
  const std::vector<float> weights = random(groups * tiles * inputs * kTileOutputs);
  std::vector<float> y(static_cast<size_t>(rows * groups * outputs));
  const pom::cpu::Epilogue epilogue{nullptr, Activation::kNone, 1.0F, nullptr, 0};
  const pom::cpu::GroupedProduct product{x.data(), groups * inputs, rows,     weights.data(),   groups,
                                         inputs,   outputs,         y.data(), groups * outputs, epilogue};
  for (int64_t group = 0; group < groups; ++group) {
    kernel.multiply_groups(product, group, 0, tiles);
  }
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t n = 0; n < groups * outputs; ++n) {
      const int64_t group = n / outputs;
      double sum = 0.0;
      double magnitude = 0.0;
      for (int64_t k = 0; k < inputs; ++k) {
        const int64_t tile = group * tiles + n % outputs / kTileOutputs;
        const double term =
            static_cast<double>(x[static_cast<size_t>((row * groups + group) * inputs + k)]) *
            static_cast<double>(
                weights[static_cast<size_t>((tile * inputs + k) * kTileOutputs + n % outputs % kTileOutputs)]);
        sum += term;
        magnitude += std::abs(term);
      }
      expect(static_cast<double>(y[static_cast<size_t>(row * groups * outputs + n)]), sum, 8 * kRounding * magnitude,
             "grouped product");
    }
  }
}

void check_rows(const ProductKernel& kernel, int64_t width) {
  const std::vector<float> x = random(width);
  double sum = 0.0;
  double squares = 0.0;
  for (const float value : x) {
    sum += static_cast<double>(value);
    squares += static_cast<double>(value) * static_cast<double>(value);
  }
  const double mean = sum / static_cast<double>(width);
  const double mean_square = squares / static_cast<double>(width);
  std::vector<float> rms(x.size());
  std::vector<float> layer(x.size());
  kernel.rms_norm(x.data(), width, 1, width, 1e-5F, nullptr, rms.data(), width);
  kernel.layer_norm(x.data(), width, 1, width, 1e-5F, nullptr, nullptr, layer.data(), width);
  for (size_t i = 0; i < x.size(); ++i) {
    const auto value = static_cast<double>(x[i]);
    const double allowed = 16 * kRounding * (1.0 + std::abs(value));
    expect(static_cast<double>(rms[i]), value / std::sqrt(mean_square + 1e-5), allowed, "RMS norm");
    expect(static_cast<double>(layer[i]), (value - mean) / std::sqrt(mean_square - mean * mean + 1e-5), allowed,
           "layer norm");
  }
  for (const Activation activation : {Activation::kNone, Activation::kGelu, Activation::kRelu, Activation::kSilu}) {
    std::vector<float> y(x.size());
    kernel.elementwise(x.data(), rms.data(), layer.data(), width, activation, 2.0F, y.data());
    for (size_t i = 0; i < x.size(); ++i) {
      const double expected = activated(activation, static_cast<double>(x[i])) * static_cast<double>(layer[i]) * 2.0 +
                              static_cast<double>(rms[i]);
      expect(static_cast<double>(y[i]), expected, 16 * kRounding * (1.0 + std::abs(expected)), "elementwise");
    }
  }
}

void check_infinity(const ProductKernel& kernel) {
  std::vector<float> x(64, 1.0F);
  x[40] = std::numeric_limits<float>::infinity();
  std::vector<int8_t> values(64);
  std::vector<float> scales(2);
  std::vector<int32_t> corrections(2);
  kernel.round_rows(x.data(), 64, 1, 64, 32, values.data(), scales.data(), corrections.data());
  if (std::isnan(scales[0]) || !std::isnan(scales[1])) {
    throw std::runtime_error("infinity is not known by its scale");
  }
}

void check(const ProductKernel& kernel) {
  for (const int64_t block : {16, 32, 64, 128, 256}) {
    for (const int64_t rows : {1, 2, 3, 5, 20}) {
      check_product(kernel, rows, 300, 70, block, 4);
      check_product(kernel, rows, 300, 70, block, 8);
    }
  }
  check_product(kernel, 9, 1700, 33, 128, 4);
  check_product(kernel, 9, 1700, 33, 128, 8);
  for (const int64_t rows : {1, 3, 4, 7, 13}) {
    check_groups(kernel, rows, 2, 50, 70);
  }
  for (const int64_t width : {1, 3, 16, 50, 700}) {
    check_rows(kernel, width);
  }
  check_infinity(kernel);
}

}  // namespace

int main() {
  for (int i = 0; const ProductKernel* kernel = pom::cpu::runnable_product_kernel(i); ++i) {
    try {
      check(*kernel);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s: %s\n", kernel->name, error.what());
      return 1;
    }
    std::printf("%s\n", kernel->name);
  }
  return 0;
}
