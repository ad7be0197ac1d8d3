// Mode "causal" in a single pass: a tile's features stay in registers until the sum before it is known; then the
// running means are written, multiplied by the gate if there is one.
#pragma once

#include "chain.cuh"
#include "gate.cuh"
#include "state.cuh"
#include "tiles.cuh"

namespace pom::cuda {

// What is applied to the means before they are written: nothing, or the gate. Packs have a separate kernel for each,
// since gates take the registers that the other needs. Single values leave enough registers, and one kernel checks
// whether there are gates.
template <typename Tile>
class NoGate {
 public:
  __device__ NoGate(const Call&, const Tile&) {}
  __device__ void load() {}
  __device__ void apply(int32_t, int32_t, float (&)[Tile::kWidth]) const {}
};

template <typename Tile>
class GateOver {
  using Type = typename Tile::Type;
  static constexpr int32_t kWidth = Tile::kWidth;

 public:
  // All threads of the block construct it together, before a barrier.
  __device__ GateOver(const Call& call, const Tile& tile) : call_(call), tile_(tile) {
    if (!is_there()) {
      return;
    }
    for (auto index = static_cast<int32_t>(threadIdx.x); index < tile.tile_channels(); index += kThreads) {
      const int32_t channel = tile.channel_of(index);
      tile.bias_of_tile_channel(index) = channel < 0 ? 0.0F : read_bias<Type>(call, channel);
    }
  }

  // Called before the wait for other tiles, so that the two overlap. Values that do not exist are read elsewhere and
  // never written.
  __device__ void load() {
    if (!is_there()) {
      return;
    }
#pragma unroll
    for (int32_t r = 0; r < Tile::kRows; ++r) {
      const int64_t row = tile_.row(tile_.present(tile_.first_token(tile_.begin()) + r));
#pragma unroll
      for (int32_t p = 0; p < Tile::kPacks; ++p) {
        gates_[r][p] = load_gates<Type, kWidth>(call_, row, tile_.has(p) ? tile_.channel(p) : 0);
      }
    }
  }

  __device__ void apply(int32_t row, int32_t pack, float (&means)[kWidth]) const {
    if (!is_there()) {
      return;
    }
    float sums[kWidth];
    unpack(gates_[row][pack], call_.problem.data_type, sums);
#pragma unroll
    for (int32_t v = 0; v < kWidth; ++v) {
      sums[v] += tile_.bias(pack * kWidth + v);
    }
    apply_gate(call_.gate.activation, sums, means);
  }

 private:
  [[nodiscard]] __device__ bool is_there() const { return !kIsAny<Type> || call_.buffers.gate != nullptr; }

  const Call& call_;
  const Tile& tile_;
  Pack<Type, kWidth> gates_[Tile::kRows][Tile::kPacks];
};

// Turns a thread's rows into their inclusive sums, and publishes the last as its group's total.
template <typename Tile>
__device__ void accumulate(const Tile& tile, typename Tile::Rows* rows) {
#pragma unroll
  for (int32_t r = 1; r < Tile::kRows; ++r) {
#pragma unroll
    for (int32_t v = 0; v < Tile::kValues; ++v) {
      rows->features[r][v] += rows->features[r - 1][v];
    }
  }
#pragma unroll
  for (int32_t v = 0; v < Tile::kValues; ++v) {
    tile.total(tile.group(), v) = rows->features[Tile::kRows - 1][v];
  }
  if (tile.sums_weights()) {
#pragma unroll
    for (int32_t r = 1; r < Tile::kRows; ++r) {
      rows->weights[r] += rows->weights[r - 1];
    }
    tile.total_weight(tile.group()) = rows->weights[Tile::kRows - 1];
  }
}

// Replaces the groups' totals of one channel, which are `stride` apart, by the sum before each group in the tile, and
// returns the total sum.
__device__ __forceinline__ float scan_groups(float* totals, int32_t groups, int32_t stride) {
  constexpr int32_t kAtOnce = 8;
  static_assert(kThreads / kMaxSingleCausalLanes % kAtOnce == 0, "a divisor of the fewest groups");
  float sum = 0.0F;
  for (int32_t first = 0; first < groups; first += kAtOnce) {
    float loaded[kAtOnce];
#pragma unroll
    for (int32_t i = 0; i < kAtOnce; ++i) {
      loaded[i] = totals[i * stride];
    }
#pragma unroll
    for (int32_t i = 0; i < kAtOnce; ++i) {
      totals[i * stride] = sum;
      sum += loaded[i];
    }
    totals += kAtOnce * stride;
  }
  return sum;
}

// One thread per channel of the tile, and the last for the weights, each with its link to other tiles.
template <typename Tile>
class Linking {
  static_assert(kMaxCausalLanes * Tile::kValues < kThreads && kMaxSingleCausalLanes * Tile::kPacks < kThreads,
                "a thread for every channel and one for the weights");

 public:
  __device__ Linking(const Call& call, const Tile& tile)
      : call_(call),
        tile_(tile),
        index_(static_cast<int32_t>(threadIdx.x)),
        channel_(index_ < tile.tile_channels() ? tile.channel_of(index_) : -1),
        link_(call, tile.position().batch, channel_ < 0 ? 0 : channel_) {}

  // Provides the sums before each group in the tile, and before the tile, to all threads after the next barrier.
  __device__ void pass() const {
    if (channel_ >= 0) {
      pass_sums();
    }
    if (tile_.sums_weights() && index_ == kThreads - 1) {
      pass_weights();
    }
  }

 private:
  __device__ void pass_sums() const {
    const Passed passed = pass(link_, &tile_.total_of_tile_channel(0, index_));
    float before = passed.before.sum + passed.before.lost;
    if (call_.problem.attributes.stateful) {  // after the wait, where more registers are free
      const int32_t batch = tile_.position().batch;
      CompensatedSum total = read_past(call_, batch, channel_);
      before = total.sum + (total.lost + before);
      if (is_last()) {
        for (const float sum : {passed.before.sum, passed.before.lost, passed.own}) {
          total.add(sum);
        }
        write_present(call_, batch, channel_, total);
      }
    }
    tile_.total_of_tile_channel(tile_.before(), index_) = before;
  }

  __device__ void pass_weights() const {
    const Position position = tile_.position();
    const int32_t column = static_cast<int32_t>(call_.problem.channels) + position.column_tile;
    const Passed passed = pass(Link(call_, position.batch, column), &tile_.total_weight(0));
    float weight = passed.before.sum + passed.before.lost;
    if (call_.problem.attributes.stateful) {
      const int64_t length = add_to_length(call_, position.batch, passed.before);
      weight = weight_of(length);
      if (is_last() && tile_.is_first()) {
        call_.buffers.present_length[position.batch] = length < 0 ? length : length + static_cast<int64_t>(passed.own);
      }
    }
    tile_.total_weight(tile_.before()) = weight;
  }

  // A tile's sum, and that of the tiles before it.
  struct Passed {
    CompensatedSum before;
    float own;
  };

  __device__ Passed pass(const Link& link, float* totals) const {
    const float own = scan_groups(totals, call_.plan.groups, tile_.row_floats());
    return {call_.plan.chunks > 1 ? link.pass(tile_.position().chunk, own) : CompensatedSum{}, own};
  }

  [[nodiscard]] __device__ bool is_last() const { return tile_.position().chunk == call_.plan.chunks - 1; }

  const Call& call_;
  const Tile& tile_;
  const int32_t index_;
  const int32_t channel_;
  const Link link_;
};

template <typename Tile, typename Epilogue>
__device__ void write_rows(const Call& call, const Tile& tile, const Epilogue& epilogue,
                           const typename Tile::Rows& rows) {
  constexpr int32_t kWidth = Tile::kWidth;
  float front[Tile::kValues];  // the sum before this thread's tokens
#pragma unroll
  for (int32_t v = 0; v < Tile::kValues; ++v) {
    front[v] = tile.total(tile.before(), v) + tile.total(tile.group(), v);
  }
  const int32_t first = tile.first_token(tile.begin());
  float front_weight = static_cast<float>(first);
  if (tile.sums_weights()) {
    front_weight = tile.total_weight(tile.before()) + tile.total_weight(tile.group());
  }
#pragma unroll
  for (int32_t r = 0; r < Tile::kRows; ++r) {
    const float weight = tile.sums_weights() ? rows.weights[r] : static_cast<float>(r + 1);
    const float scale = mean_scale(front_weight + weight, call.plan.epsilon);
#pragma unroll
    for (int32_t p = 0; p < Tile::kPacks; ++p) {
      float means[kWidth];
#pragma unroll
      for (int32_t v = 0; v < kWidth; ++v) {
        means[v] = (front[p * kWidth + v] + rows.features[r][p * kWidth + v]) * scale;
      }
      if (scale == 0.0F) {  // one branch for all channels, instead of one select per channel
#pragma unroll
        for (int32_t v = 0; v < kWidth; ++v) {
          means[v] = none(front_weight + weight);
        }
      }
      epilogue.apply(r, p, means);
      tile.write(first + r, p, means);
    }
  }
}

// A block computes chunks of its stream until none is left. While it waits for others, it loads its next chunk.
template <typename Tile, template <typename> class Epilogue>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce) causal_kernel(const Call call) {
  // Two, so that one can still be read while the next is written.
  auto* const next_chunks = reinterpret_cast<int32_t*>(shared_memory());
  const uint32_t stream = blockIdx.x % static_cast<uint32_t>(call.problem.batch * call.plan.column_tiles);
  const bool takes = threadIdx.x == 0;
  Tile tile(call, stream_position(call.plan, stream), tile_memory());
  const bool is_alone = call.plan.chunks == 1;  // without a ticket
  if (takes) {
    next_chunks[1] = is_alone ? 0 : take_chunk(call, stream);
  }
  __syncthreads();
  int32_t chunk = next_chunks[1];
  if (chunk >= call.plan.chunks) {
    return;
  }
  Epilogue<Tile> epilogue(call, tile);
  const Linking<Tile> linking(call, tile);
  tile.move_to(chunk);
  typename Tile::Loaded loaded = tile.load(tile.begin());
  tile.prepare();
  for (int32_t set = 0; chunk < call.plan.chunks; set = 1 - set) {
    const int32_t taken = takes && !is_alone ? take_chunk(call, stream) : call.plan.chunks;
    tile.use_totals(set);
    typename Tile::Rows rows = tile.features(tile.begin(), loaded);
    accumulate(tile, &rows);
    if (takes) {
      next_chunks[set] = taken;
    }
    __syncthreads();
    const int32_t next = next_chunks[set];
    if (next < call.plan.chunks) {
      tile.move_to(next);
      loaded = tile.load(tile.begin());
      tile.move_to(chunk);
    }
    epilogue.load();
    linking.pass();
    __syncthreads();
    write_rows(call, tile, epilogue, rows);
    chunk = next;
    if (chunk < call.plan.chunks) {
      tile.move_to(chunk);
    }
  }
}

template <typename Tile>
Kernel causal_kernel_for(const Call& call) {
  if constexpr (!kIsAny<typename Tile::Type>) {
    if (call.buffers.gate == nullptr) {
      return causal_kernel<Tile, NoGate>;
    }
  }
  return causal_kernel<Tile, GateOver>;
}

// A call without tokens.
inline cudaError_t copy_state(const Call& call, cudaStream_t stream) {
  const Buffers& buffers = call.buffers;
  const auto rows = static_cast<std::size_t>(call.problem.batch);
  const std::size_t bytes = rows * kStateRows * static_cast<std::size_t>(call.problem.channels) * sizeof(float);
  const cudaError_t status =
      cudaMemcpyAsync(buffers.present_state, buffers.past_state, bytes, cudaMemcpyDeviceToDevice, stream);
  return status == cudaSuccess ? cudaMemcpyAsync(buffers.present_length, buffers.past_length, rows * sizeof(int64_t),
                                                 cudaMemcpyDeviceToDevice, stream)
                               : status;
}

template <typename T, int32_t Width>
cudaError_t write_causal(const Call& call, cudaStream_t stream) {
  if (call.plan.chunks == 0) {
    return copy_state(call, stream);
  }
  if (call.plan.chunks > 1) {
    const std::size_t bytes = chain_bytes(call.problem, call.plan.column_tiles, call.plan.chunks);
    if (const cudaError_t status = cudaMemsetAsync(call.buffers.workspace, 0, bytes, stream); status != cudaSuccess) {
      return status;
    }
  }
  return dispatch_tile<T, Width>(call, [&](auto chosen) {
    return launch(causal_kernel_for<typename decltype(chosen)::Tile>(call), call, call.plan.blocks,
                  static_cast<std::size_t>(shared_bytes(call.problem, call.plan)), stream);
  });
}

}  // namespace pom::cuda
