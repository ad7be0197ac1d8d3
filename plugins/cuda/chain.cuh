// How the tiles of mode "causal" follow each other; chain.h describes the layout.
//
// Blocks take the chunks of a stream with its ticket, in the order of the tokens, so that a tile only waits for tiles
// that are being computed. The sum before it consists of a prefix, a few spans and a few sums, added in the order of
// the tokens, so that the bits are the same whenever they arrive.
#pragma once

#include "chain.h"
#include "launch.cuh"
#include "tile.cuh"

namespace pom::cuda {

#if defined(__CUDACC__)
__device__ __forceinline__ Word load_word(const Word* word) {
  Word loaded;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(loaded) : "l"(word) : "memory");
  return loaded;
}
__device__ __forceinline__ void store_word(Word* word, Word value) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
}
__device__ __forceinline__ void wait_a_little() {}  // the load itself takes long enough
#else
using emulation::load_word;
using emulation::store_word;
using emulation::wait_a_little;
#endif

constexpr Word kIsThere = Word{1} << 32;

__device__ __forceinline__ void publish(Word* word, float value) {
  store_word(word, kIsThere | bits_as<uint32_t>(value));
}

__device__ __forceinline__ bool is_there(Word word) { return (word & kIsThere) != 0; }

__device__ __forceinline__ float value_of(Word word) { return bits_as<float>(static_cast<uint32_t>(word)); }

__device__ __forceinline__ float wait_for(const Word* word, Word loaded) {
  while (!is_there(loaded)) {
    wait_a_little();
    loaded = load_word(word);
  }
  return value_of(loaded);
}

// The stream of a block. Streams that start together are adjacent along the channels.
__device__ __forceinline__ Position stream_position(const Plan& plan, uint32_t stream) {
  const auto column_tiles = static_cast<uint32_t>(plan.column_tiles);
  return {static_cast<int32_t>(stream / column_tiles), 0, static_cast<int32_t>(stream % column_tiles)};
}

// Takes the next chunk of a stream, which may be past the last.
__device__ __forceinline__ int32_t take_chunk(const Call& call, uint32_t stream) {
  return static_cast<int32_t>(atomicAdd(static_cast<uint32_t*>(call.buffers.workspace) + stream, 1U));
}

// One column of a stream.
class Link {
 public:
  __device__ Link(const Call& call, int32_t batch, int32_t column)
      : columns_(static_cast<int32_t>(call.problem.channels) + call.plan.column_tiles) {
    const int32_t chunks = call.plan.chunks;
    const int32_t spans = (chunks + kRadix - 1) / kRadix;
    const int32_t long_spans = (spans + kRadix - 1) / kRadix;
    const int64_t rows = call.problem.batch * columns_;
    sums_ = static_cast<Word*>(call.buffers.workspace) + call.plan.ticket_words;
    spans_ = sums_ + rows * chunks;
    prefixes_ = spans_ + rows * spans;
    sums_ += int64_t{batch} * chunks * columns_ + column;
    spans_ += int64_t{batch} * spans * columns_ + column;
    prefixes_ += (int64_t{batch} * long_spans * columns_ + column) * 2;
  }

  // Publishes a chunk's sum, and returns that of all tokens before it, as the two summands from which the result is
  // rounded.
  __device__ CompensatedSum pass(int32_t chunk, float own_sum) const {
    Word* const own = sums_ + int64_t{chunk} * columns_;
    publish(own, own_sum);
    const int32_t span = chunk / kRadix;
    const Prefix prefix_words = load_prefix(span / kRadix - 1);
    const float sums = sum_before(own, chunk % kRadix);
    Word* const own_span = spans_ + int64_t{span} * columns_;
    const bool ends_span = chunk % kRadix == kRadix - 1;
    if (ends_span) {
      publish(own_span, sums + own_sum);
    }
    const float spans = sum_before(own_span, span % kRadix);
    CompensatedSum prefix = wait_for_prefix(span / kRadix - 1, prefix_words);
    const CompensatedSum before{prefix.sum, prefix.lost + (spans + sums)};
    if (ends_span && span % kRadix == kRadix - 1) {
      prefix.add(spans + (sums + own_sum));
      publish(prefix_word(span / kRadix), prefix.sum);
      publish(prefix_word(span / kRadix) + 1, prefix.error());
    }
    return before;
  }

 private:
  struct Prefix {
    Word sum;
    Word lost;
  };

  [[nodiscard]] __device__ Word* prefix_word(int32_t number) const {
    return prefixes_ + int64_t{number} * 2 * columns_;
  }

  // -1 stands for the prefix before the first token.
  [[nodiscard]] __device__ Prefix load_prefix(int32_t number) const {
    if (number < 0) {
      return {kIsThere, kIsThere};
    }
    return {load_word(prefix_word(number)), load_word(prefix_word(number) + 1)};
  }

  [[nodiscard]] __device__ CompensatedSum wait_for_prefix(int32_t number, Prefix loaded) const {
    return {wait_for(prefix_word(number), loaded.sum), wait_for(prefix_word(number) + 1, loaded.lost)};
  }

  // The sum of the `count` words before this one, in order.
  [[nodiscard]] __device__ float sum_before(const Word* word, int32_t count) const {
    const Word* const first = word - int64_t{count} * columns_;
    Word loaded[kRadix - 1];
#pragma unroll
    for (int32_t i = 0; i < kRadix - 1; ++i) {
      loaded[i] = i < count ? load_word(first + int64_t{i} * columns_) : kIsThere;
    }
    float sum = 0.0F;
#pragma unroll
    for (int32_t i = 0; i < kRadix - 1; ++i) {
      sum += wait_for(first + int64_t{i} * columns_, loaded[i]);
    }
    return sum;
  }

  const int32_t columns_;
  Word* sums_;
  Word* spans_;
  Word* prefixes_;
};

}  // namespace pom::cuda
