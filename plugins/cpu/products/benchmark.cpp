// Measures the speed of products alone. Built with -DPOM_BUILD_BENCHMARK=ON, never installed.
//
//   pom_products_benchmark    --kernel NAME (the fastest), --threads T (1), --runs R (15), --block B (128),
//                             --inputs K and --outputs N (768 and 3072, then 4608 and 768), --rows R (1 4 16 128 1024)
//                             --memory M (256): MiB of weights, at least, that the runs go through; 0: always the same
//
// One JSON object a line, for products with 4-bit weights and, with as many weights, for one group in float32. Each run
// has other weights, so that they come from memory. "read" is a plain loop over the same bytes; runs of the two are
// interleaved. Times are medians in microseconds; ratio is ours divided by
// the loop's. gops counts a multiplication and an addition as two. "round" is the rounding of the activations.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "../benchmark_pool.h"
#include "products.h"

namespace {

using pom::cpu::Pool;
using pom::cpu::ProductKernel;

struct Options {
  std::string kernel;
  int threads = 1;
  int runs = 15;
  int64_t block = 128;
  int64_t inputs = 0;
  int64_t outputs = 0;
  int64_t rows = 0;
  size_t memory = 256;
};

struct Sizes {
  int64_t rows, inputs, outputs, block;
  [[nodiscard]] int64_t tiles() const { return (outputs + pom::cpu::kTileOutputs - 1) / pom::cpu::kTileOutputs; }
  [[nodiscard]] int64_t blocks() const { return (inputs + block - 1) / block; }
};

// Begins where a cache line does.
template <typename T>
class Array {
 public:
  explicit Array(size_t count) : memory_(count * sizeof(T) + 64) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    data_ = reinterpret_cast<T*>(memory_.data() + (64 - address % 64) % 64);
  }
  [[nodiscard]] T* data() { return data_; }

 private:
  std::vector<uint8_t> memory_;
  T* data_;
};

double microseconds(const std::function<void()>& function) {
  const auto start = std::chrono::steady_clock::now();
  function();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Reads every word, as wide as the compiler can.
uint64_t read(const uint8_t* bytes, size_t count) {
  constexpr size_t kLanes = 32;
  constexpr size_t kAhead = 4096;
  uint64_t sums[kLanes] = {};
  uint64_t words[kLanes];
  for (size_t i = 0; i + sizeof words <= count; i += sizeof words) {
    for (size_t line = 0; line < sizeof words; line += 64) {
      __builtin_prefetch(bytes + i + kAhead + line);
    }
    std::memcpy(words, bytes + i, sizeof words);
    for (size_t lane = 0; lane < kLanes; ++lane) {
      sums[lane] += words[lane];
    }
  }
  return std::accumulate(sums, sums + kLanes, uint64_t{0});
}

// Times `multiply`, which is called with weights and a range of tiles, beside a loop that reads the same weights.
void compare(const char* kind, const ProductKernel& kernel, const Options& options, const Sizes& sizes,
             size_t tile_bytes, double rounding, const std::function<void(const uint8_t*, int64_t, int64_t)>& multiply,
             const std::function<void(uint8_t*)>& fill) {
  Pool pool(options.threads);
  const size_t bytes = static_cast<size_t>(sizes.tiles()) * tile_bytes;
  const size_t sets = (options.memory << 20) / bytes + 1;
  Array<uint8_t> weights(sets * bytes);
  for (size_t set = 0; set < sets; ++set) {
    fill(weights.data() + set * bytes);
  }
  const auto bound = [&](int index) { return sizes.tiles() * index / pool.size(); };
  std::vector<uint64_t> seen(static_cast<size_t>(pool.size()));
  std::vector<double> ours;
  std::vector<double> reading;
  size_t set = 0;
  const auto next = [&] { return weights.data() + bytes * (set++ % sets); };
  // So many at a time that a clock is precise enough.
  const int together =
      static_cast<int>(std::max<int64_t>(1, (int64_t{1} << 28) / (sizes.rows * sizes.inputs * sizes.outputs)));
  for (int run = -2; run < options.runs; ++run) {
    const double time = microseconds([&] {
      for (int i = 0; i < together; ++i) {
        const uint8_t* from = next();
        pool.run([&](int index) { multiply(from, bound(index), bound(index + 1)); });
      }
    });
    const double read_time = microseconds([&] {
      for (int i = 0; i < together; ++i) {
        const uint8_t* from = next();
        pool.run([&](int index) {
          const auto first = static_cast<size_t>(bound(index)) * tile_bytes;
          seen[static_cast<size_t>(index)] +=
              read(from + first, static_cast<size_t>(bound(index + 1)) * tile_bytes - first);
        });
      }
    });
    if (run >= 0) {
      ours.push_back(time / together);
      reading.push_back(read_time / together);
    }
  }
  const double time = median(ours);
  const double operations = 2.0 * static_cast<double>(sizes.rows) * static_cast<double>(sizes.inputs * sizes.outputs);
  std::printf(
      "{\"kind\":\"%s\",\"kernel\":\"%s\",\"threads\":%d,\"rows\":%lld,\"inputs\":%lld,\"outputs\":%lld,\"block\":%lld,"
      "\"us\":%.1f,\"read_us\":%.1f,\"ratio\":%.2f,\"gb_s\":%.1f,\"read_gb_s\":%.1f,\"gops\":%.0f,\"round_us\":%.1f}%"
      "s\n",
      kind, kernel.name, options.threads, static_cast<long long>(sizes.rows), static_cast<long long>(sizes.inputs),
      static_cast<long long>(sizes.outputs), static_cast<long long>(sizes.block), time, median(reading),
      time / median(reading), static_cast<double>(bytes) / time / 1e3,
      static_cast<double>(bytes) / median(reading) / 1e3, operations / time / 1e3, rounding, seen[0] == 1 ? " " : "");
  std::fflush(stdout);
}

void measure_int4(const ProductKernel& kernel, const Options& options, const Sizes& sizes) {
  const auto rows = static_cast<size_t>(sizes.rows);
  const auto blocks = static_cast<size_t>(sizes.blocks());
  const auto stride = static_cast<size_t>(sizes.blocks() * sizes.block);
  Array<float> x(rows * static_cast<size_t>(sizes.inputs));
  for (size_t i = 0; i < rows * static_cast<size_t>(sizes.inputs); ++i) {
    x.data()[i] = static_cast<float>(i * 2654435761U % 1000) / 500.0F - 1.0F;
  }
  Array<int8_t> values(rows * stride);
  Array<float> scales(rows * blocks);
  Array<int32_t> corrections(rows * blocks);
  const auto round = [&] {
    kernel.round_rows(x.data(), sizes.inputs, sizes.rows, sizes.inputs, sizes.block, values.data(), scales.data(),
                      corrections.data());
  };
  round();
  Array<float> y(rows * static_cast<size_t>(sizes.outputs));
  const size_t block_bytes = static_cast<size_t>(64 + sizes.block * 8);
  const auto fill = [&](uint8_t* weights) {
    const float scale = 0.01F;
    for (size_t at = 0; at < static_cast<size_t>(sizes.tiles()) * blocks * block_bytes; at += block_bytes) {
      for (size_t i = 0; i < 64; i += sizeof scale) {
        std::memcpy(weights + at + i, &scale, sizeof scale);
      }
      std::memset(weights + at + 64, 0x5A, block_bytes - 64);
    }
  };
  const auto multiply = [&](const uint8_t* weights, int64_t first, int64_t last) {
    pom::cpu::Product product{};
    product.x = {values.data(), scales.data(), corrections.data(), sizes.blocks() * sizes.block, sizes.blocks()};
    product.rows = sizes.rows;
    product.weights = weights;
    product.bits = 4;
    product.block = sizes.block;
    product.outputs = product.y_stride = sizes.outputs;
    product.y = y.data();
    product.epilogue.factor = 1.0F;
    kernel.multiply(product, first, last);
  };
  compare("int4", kernel, options, sizes, blocks * block_bytes, microseconds(round), multiply, fill);
}

void measure_float(const ProductKernel& kernel, const Options& options, const Sizes& sizes) {
  const auto rows = static_cast<size_t>(sizes.rows);
  Array<float> x(rows * static_cast<size_t>(sizes.inputs));
  Array<float> y(rows * static_cast<size_t>(sizes.outputs));
  std::fill_n(x.data(), rows * static_cast<size_t>(sizes.inputs), 0.5F);
  const size_t tile_bytes = static_cast<size_t>(sizes.inputs * pom::cpu::kTileOutputs) * sizeof(float);
  const auto fill = [&](uint8_t* weights) {
    std::fill_n(reinterpret_cast<float*>(weights), static_cast<size_t>(sizes.tiles()) * tile_bytes / sizeof(float),
                0.1F);
  };
  const auto multiply = [&](const uint8_t* weights, int64_t first, int64_t last) {
    pom::cpu::GroupedProduct product{};
    product.x = x.data();
    product.x_stride = product.inputs = sizes.inputs;
    product.rows = sizes.rows;
    product.weights = reinterpret_cast<const float*>(weights);
    product.groups = 1;
    product.outputs = product.y_stride = sizes.outputs;
    product.y = y.data();
    product.epilogue.factor = 1.0F;
    kernel.multiply_groups(product, 0, first, last);
  };
  compare("float32", kernel, options, sizes, tile_bytes, 0.0, multiply, fill);
}

Options parse(int count, char** arguments) {
  Options options;
  for (int i = 1; i < count; i += 2) {
    const std::string name = arguments[i];
    if (i + 1 == count) {
      throw std::invalid_argument(name + " needs a value");
    }
    const std::string value = arguments[i + 1];
    if (name == "--kernel") {
      options.kernel = value;
    } else if (name == "--threads") {
      options.threads = std::stoi(value);
    } else if (name == "--runs") {
      options.runs = std::stoi(value);
    } else if (name == "--block") {
      options.block = std::stoll(value);
    } else if (name == "--inputs") {
      options.inputs = std::stoll(value);
    } else if (name == "--outputs") {
      options.outputs = std::stoll(value);
    } else if (name == "--rows") {
      options.rows = std::stoll(value);
    } else if (name == "--memory") {
      options.memory = std::stoull(value);
    } else {
      throw std::invalid_argument("no option " + name);
    }
  }
  return options;
}

const ProductKernel& kernel_named(const std::string& name) {
  for (int i = 0; const ProductKernel* kernel = pom::cpu::runnable_product_kernel(i); ++i) {
    if (name.empty() || name == kernel->name) {
      return *kernel;
    }
  }
  throw std::invalid_argument("this machine cannot run the kernel " + name);
}

void benchmark(const Options& options) {
  const ProductKernel& kernel = kernel_named(options.kernel);
  std::vector<Sizes> shapes{{0, 768, 3072, options.block}, {0, 4608, 768, options.block}};
  if (options.inputs != 0 && options.outputs != 0) {
    shapes = {{0, options.inputs, options.outputs, options.block}};
  }
  for (Sizes sizes : shapes) {
    for (const int64_t rows : {1, 4, 16, 128, 1024}) {
      sizes.rows = options.rows != 0 ? options.rows : rows;
      measure_int4(kernel, options, sizes);
      measure_float(kernel, options, sizes);
      if (options.rows != 0) {
        break;
      }
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  try {
    benchmark(parse(count, arguments));
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "pom_products_benchmark: %s\n", error.what());
    return 1;
  }
}
