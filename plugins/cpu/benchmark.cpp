// Measures the speed of the kernels alone. Built with -DPOM_BUILD_BENCHMARK=ON, never installed.
//
//   pom_cpu_benchmark                   every case, as one JSON object on one line
//   pom_cpu_benchmark --case CASE       one case. CASE is mean, causal, gated-mean or gated-causal, a hyphen, and
//                                       float32, float16 or bfloat16
//     --once                            run it once, on one thread, and print its size: for counting instructions with
//                                       valgrind --tool=callgrind --toggle-collect=measured_call
//     --threads T (2), --batch B (1), --tokens N, --channels C (1024), --degree K (3), --runs R (21)
//
// "cold": inputs larger than the caches, compared with a plain loop that reads (mean) or reads and writes (causal) the
// same bytes; before each run, the caches are filled with other data.
// "hot": inputs in the caches, compared with the same kernel functions on one row in the first-level cache. Runs of the
// two are interleaved, times are medians (and minima) in milliseconds, and ratio is the other's time divided by ours.
// POM_CPU_KERNEL selects the kernel, as in the library.
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "benchmark_case.h"
#include "benchmark_pool.h"
#include "dispatch.h"

namespace {

using pom::DataType;
using pom::cpu::Case;
using pom::cpu::Line;
using pom::cpu::Options;
using pom::cpu::Pool;

constexpr int64_t kColdTokens = 32768;
constexpr int64_t kHotTokens = 1024;
constexpr size_t kFlushedLines = size_t{1} << 20;  // 64 MiB

// Reads every word of x and, if `writes`, writes as many, as wide as the compiler can.
void plain(Case* run, Pool* pool) {
  constexpr size_t kLanes = 32;
  const size_t blocks = run->x.size() * sizeof(Line) / sizeof(uint64_t) / kLanes;
  const auto first = [&](int index) { return blocks * static_cast<size_t>(index) / static_cast<size_t>(pool->size()); };
  pool->run([&](int index) {
    const uint64_t* __restrict x = run->x.data()->words + first(index) * kLanes;
    uint64_t* __restrict y = run->y.data()->words;
    const size_t count = (first(index + 1) - first(index)) * kLanes;
    if (run->writes()) {
      y += first(index) * kLanes;
      for (size_t i = 0; i < count; ++i) {
        y[i] = x[i] + 1;
      }
    } else {
      uint64_t sum[kLanes] = {};
      for (size_t i = 0; i < count; i += kLanes) {
        for (size_t lane = 0; lane < kLanes; ++lane) {
          sum[lane] += x[i + lane];
        }
      }
      y[index] += std::accumulate(sum, sum + kLanes, uint64_t{0});
    }
  });
}

// The kernel functions on as many rows, all of which are the first one.
void floor_of(Case* run, Pool* pool) {
  pool->run([&](int index) {
    constexpr int64_t kColumns = 256;
    constexpr int64_t kStep = 16;
    alignas(64) float scratch[5 * kColumns] = {};
    float scales[kStep];
    std::fill_n(scales, kStep, 0.5F);
    const auto& type = run->problem.data_type == DataType::kFloat32   ? run->kernel->float32
                       : run->problem.data_type == DataType::kFloat16 ? run->kernel->float16
                                                                      : run->kernel->bfloat16;
    pom::cpu::Rows rows{};
    rows.x = run->x.data();
    rows.columns = rows.scratch_stride = kColumns;
    rows.count = kStep;
    rows.parts = 1;
    rows.coefficients = run->coefficients.values();
    rows.coefficient_stride = run->coefficients.stride();
    rows.degree = run->problem.degree;
    rows.sum = scratch;
    rows.rest = scratch + kColumns;
    rows.before = scratch + 2 * kColumns;
    rows.running = scratch + 3 * kColumns;
    rows.scales = scales;
    alignas(64) float y[kColumns];
    rows.y = y;
    const int64_t blocks = run->elements() / (kStep * kColumns);
    for (int64_t block = index; block < blocks; block += pool->size()) {
      if (run->writes()) {
        type.features.power.average(rows);
      } else {
        type.features.power.accumulate(rows);
      }
    }
  });
}

// With one thread, its CPU time: on a busy machine, waiting for a processor does not count against the kernel.
double now(const Pool& pool) {
  timespec time{};
  clock_gettime(pool.size() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) / 1e6;
}

double milliseconds(const Pool& pool, const std::function<void()>& function) {
  const double start = now(pool);
  function();
  return now(pool) - start;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Empties the caches of everything that a run needs, and of pending writes.
void flush(Pool* pool) {
  static std::vector<Line> other(kFlushedLines);
  pool->run([&](int index) {
    uint64_t sum = 0;
    for (const Line& line : other) {
      sum += line.words[0];
    }
    other[static_cast<size_t>(index)].words[1] = sum;
  });
}

std::string compare(const Options& options, Case* run, Pool* pool, bool cold) {
  std::vector<double> ours;
  std::vector<double> other;
  const int runs = cold ? options.runs : options.runs * 10;
  const auto timed = [&](const std::function<void()>& function) {
    if (cold) {
      flush(pool);
    }
    return milliseconds(*pool, function);
  };
  for (int i = -2; i < runs; ++i) {
    const double our_time = timed([&] { run->run(pool); });
    const double other_time = timed([&] { cold ? plain(run, pool) : floor_of(run, pool); });
    if (i >= 0) {
      ours.push_back(our_time);
      other.push_back(other_time);
    }
  }
  const double our_best = *std::min_element(ours.begin(), ours.end());
  const double other_best = *std::min_element(other.begin(), other.end());
  const char* kind = cold ? "plain" : "floor";
  char text[240];
  std::snprintf(text, sizeof text,
                "{\"tokens\":%lld,\"ours_ms\":%.4f,\"%s_ms\":%.4f,\"ratio\":%.3f,\"ours_best_ms\":%.4f,"
                "\"%s_best_ms\":%.4f,\"best_ratio\":%.3f}",
                static_cast<long long>(run->problem.tokens), median(ours), kind, median(other),
                median(other) / median(ours), our_best, kind, other_best, other_best / our_best);
  return text;
}

std::string measure(const Options& options, const std::string& name, Pool* pool) {
  std::string text = "\"" + name + "\":{";
  for (const bool cold : {true, false}) {
    const int64_t tokens = options.tokens != 0 ? options.tokens : cold ? kColdTokens : kHotTokens;
    Case run(options, name, tokens);
    text += std::string(cold ? "\"cold\":" : ",\"hot\":") + compare(options, &run, pool, cold);
  }
  return text + "}";
}

Options parse(int count, char** arguments) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string name = arguments[i];
    if (name == "--once") {
      options.once = true;
      continue;
    }
    if (++i == count) {
      throw std::invalid_argument(name + " needs a value");
    }
    const std::string value = arguments[i];
    if (name == "--case") {
      options.name = value;
    } else if (name == "--threads") {
      options.threads = std::stoi(value);
    } else if (name == "--runs") {
      options.runs = std::stoi(value);
    } else if (name == "--batch") {
      options.batch = std::stoll(value);
    } else if (name == "--tokens") {
      options.tokens = std::stoll(value);
    } else if (name == "--channels") {
      options.channels = std::stoll(value);
    } else if (name == "--degree") {
      options.degree = std::stoll(value);
    } else {
      throw std::invalid_argument("no option " + name);
    }
  }
  return options;
}

void benchmark(const Options& options) {
  if (options.once) {
    Case run(options, options.name, options.tokens != 0 ? options.tokens : kHotTokens);
    run.run(nullptr);
    std::printf("{\"case\":\"%s\",\"kernel\":\"%s\",\"elements\":%lld}\n", options.name.c_str(), run.kernel->name,
                static_cast<long long>(run.elements()));
    return;
  }
  Pool pool(options.threads);
  std::vector<std::string> names{options.name};
  if (options.name.empty()) {
    names = {"mean-float32", "mean-float16", "mean-bfloat16", "causal-float32", "causal-float16", "causal-bfloat16"};
  }
  std::string text;
  for (const std::string& name : names) {
    text += (text.empty() ? "" : ",") + measure(options, name, &pool);
  }
  const pom::cpu::Dispatch dispatch = pom::cpu::dispatch();
  std::printf("{\"kernel\":\"%s\",\"threads\":%d,\"channels\":%lld,\"degree\":%lld,\"cases\":{%s}}\n",
              dispatch.kernel->name, options.threads, static_cast<long long>(options.channels),
              static_cast<long long>(options.degree), text.c_str());
}

}  // namespace

int main(int count, char** arguments) {
  try {
    benchmark(parse(count, arguments));
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "pom_cpu_benchmark: %s\n", error.what());
    return 1;
  }
}
