// Second and third phase of "causal": what comes before each chunk, then the running mean of every token, and the gate
// over it.
#include "gate.cuh"
#include "tiles.cuh"

namespace pom::cuda {
namespace {

// Replace every chunk's sum by that of all chunks before it. One thread a column of (batch, channels and weights).
__global__ void __launch_bounds__(kThreads) scan_kernel(const Call call) {
  constexpr int32_t kAhead = 8;  // chunks loaded before the first is needed
  const int64_t columns = call.problem.channels + 1;
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= call.problem.batch * columns) {
    return;
  }
  const int64_t chunks = call.plan.chunks;
  float* column = static_cast<float*>(call.buffers.workspace) + index / columns * chunks * columns + index % columns;
  CompensatedSum before;
  for (int64_t first = 0; first < chunks; first += kAhead) {
    float sums[kAhead];
#pragma unroll
    for (int32_t i = 0; i < kAhead; ++i) {
      sums[i] = first + i < chunks ? column[(first + i) * columns] : 0.0F;
    }
#pragma unroll
    for (int32_t i = 0; i < kAhead; ++i) {
      if (first + i < chunks) {
        column[(first + i) * columns] = before.value();
        before.add(sums[i]);
      }
    }
  }
}

// A sum a channel, and that of the weights.
template <int32_t Channels>
struct Sums {
  float features[Channels] = {};
  float weight = 0.0F;
};

template <typename Tile>
__device__ void read_before(const Tile& tile, int32_t pack, float (&before)[Tile::kWidth]) {
  if (tile.has(pack)) {
    const float* sums = tile.chunk_sums() + tile.channel(pack);
#pragma unroll
    for (int32_t v = 0; v < Tile::kWidth; ++v) {
      before[v] = sums[v];
    }
  }
}

// Add the groups' totals of one pack, and with the first those of the weights, to `carry`; `front` becomes what it was
// in front of this thread's group.
template <typename Tile>
__device__ void pass_groups(const Call& call, const Tile& tile, int32_t pack, Sums<Tile::kValues>* carry,
                            Sums<Tile::kWidth>* front) {
  const auto copy = [&] {
#pragma unroll
    for (int32_t v = 0; v < Tile::kWidth; ++v) {
      front->features[v] = carry->features[pack * Tile::kWidth + v];
    }
    if (pack == 0) {
      front->weight = carry->weight;
    }
  };
  copy();
  for (int32_t group = 0; group < call.plan.groups; ++group) {
#pragma unroll
    for (int32_t v = 0; v < Tile::kWidth; ++v) {
      carry->features[pack * Tile::kWidth + v] += tile.total(group, pack * Tile::kWidth + v);
    }
    if (pack == 0) {
      carry->weight += tile.total_weight(group);
    }
    if (group + 1 == tile.group()) {
      copy();
    }
  }
}

// Turn a thread's rows into their inclusive sums and publish the last as its group's total.
template <typename Tile>
__device__ void accumulate(const Tile& tile, typename Tile::Rows* rows) {
#pragma unroll
  for (int32_t r = 1; r < Tile::kRows; ++r) {
#pragma unroll
    for (int32_t v = 0; v < Tile::kValues; ++v) {
      rows->features[r][v] += rows->features[r - 1][v];
    }
    rows->weights[r] += rows->weights[r - 1];
  }
#pragma unroll
  for (int32_t v = 0; v < Tile::kValues; ++v) {
    tile.total(tile.group(), v) = rows->features[Tile::kRows - 1][v];
  }
  tile.total_weight(tile.group()) = rows->weights[Tile::kRows - 1];
}

// What is done to the means before they are written: nothing, or the gate.
template <typename Tile>
class NoGate {
 public:
  __device__ NoGate(const Call&, const Tile&) {}
  __device__ void prefetch_step(int64_t) const {}
  __device__ void apply(int64_t, int32_t, float (&)[Tile::kWidth]) const {}
};

template <typename Tile>
class GateOver {
  using Type = typename Tile::Type;
  static constexpr int32_t kWidth = Tile::kWidth;

 public:
  // All threads of the block construct it together, in front of the barrier of the first step.
  __device__ GateOver(const Call& call, const Tile& tile) : call_(call), tile_(tile) {
    for (auto index = static_cast<int32_t>(threadIdx.x); index < tile.tile_channels(); index += kThreads) {
      const int64_t channel = tile.channel_of(index);
      tile.bias_of_tile_channel(index) = channel < 0 ? 0.0F : read_bias<Type>(call, channel);
    }
  }

  // With the step's own loads: the gates are needed once its sums are made, and would wait for memory a second time.
  // With two packs no registers are left for the addresses.
  __device__ void prefetch_step(int64_t base) const {
    if constexpr (Tile::kPacks == 1) {
#pragma unroll
      for (int32_t r = 0; r < Tile::kRows; ++r) {
        if (const int64_t token = tile_.first_token(base) + r; tile_.has(0) && token < tile_.end()) {
          prefetch_gates<Type>(call_, tile_.row(token), tile_.channel(0));
        }
      }
    }
  }

  __device__ void apply(int64_t token, int32_t pack, float (&means)[kWidth]) const {
    Pack<Type, kWidth> gates{};
    if (tile_.has(pack) && token < tile_.end()) {
      gates = load_gates<Type, kWidth>(call_, tile_.row(token), tile_.channel(pack));
    }
    float sums[kWidth];
#pragma unroll
    for (int32_t v = 0; v < kWidth; ++v) {
      sums[v] = to_float(gates.values[v]) + tile_.bias(pack * kWidth + v);
    }
    apply_gate(call_.gate.activation, sums, means);
  }

 private:
  const Call& call_;
  const Tile& tile_;
};

template <typename Tile, template <typename> class Epilogue>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce) causal_kernel(const Call call) {
  constexpr int32_t kWidth = Tile::kWidth;
  // Registers hold the sums before the chunk of one pack, but not of two: those are read again at every step.
  constexpr bool kHoldsBefore = Tile::kPacks == 1;
  const Tile tile(call, shared_memory());
  float before[kWidth] = {};
  if (kHoldsBefore) {
    read_before(tile, 0, before);
  }
  const float before_weight = tile.chunk_sums()[call.problem.channels];
  const float epsilon = call.problem.has_mask ? call.problem.attributes.epsilon : 0.0F;
  Sums<Tile::kValues> carry;  // of this chunk alone, so that it stays short
  const Epilogue<Tile> epilogue(call, tile);
  for (int64_t base = tile.begin(); base < tile.end(); base += tile.step()) {
    epilogue.prefetch_step(base);
    typename Tile::Rows rows = tile.read(base);
    accumulate(tile, &rows);
    __syncthreads();
    Sums<kWidth> front;
#pragma unroll
    for (int32_t p = 0; p < Tile::kPacks; ++p) {
      pass_groups(call, tile, p, &carry, &front);
      if (!kHoldsBefore) {
        read_before(tile, p, before);
      }
#pragma unroll
      for (int32_t r = 0; r < Tile::kRows; ++r) {
        const float weight = before_weight + (front.weight + rows.weights[r]);
        float means[kWidth];
#pragma unroll
        for (int32_t v = 0; v < kWidth; ++v) {
          const float sum = before[v] + (front.features[v] + rows.features[r][p * kWidth + v]);
          means[v] = weighted_mean(sum, weight, epsilon);
        }
        epilogue.apply(tile.first_token(base) + r, p, means);
        tile.write(tile.first_token(base) + r, p, means);
      }
    }
    __syncthreads();  // the totals have been read
  }
}

}  // namespace

cudaError_t finish_causal(const Call& call, cudaStream_t stream) {
  const int64_t columns = call.problem.batch * (call.problem.channels + 1);
  const cudaError_t status = launch(scan_kernel, call, (columns + kThreads - 1) / kThreads, 0, stream);
  if (status != cudaSuccess) {
    return status;
  }
  return dispatch_tile(call, [&](auto chosen) {
    using Tile = typename decltype(chosen)::Tile;
    const Kernel kernel = call.buffers.gate == nullptr ? causal_kernel<Tile, NoGate> : causal_kernel<Tile, GateOver>;
    return launch(kernel, call, block_count(call.problem, call.plan),
                  static_cast<std::size_t>(shared_bytes(call.problem, call.plan)), stream);
  });
}

}  // namespace pom::cuda
