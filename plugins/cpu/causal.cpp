// The causal mode: tiles of some tokens and one block of columns, in one pass over memory.
//
// A tile computes the running sums of its own tokens and adds what the tiles before it have summed: the carry, which
// goes from tile to tile of a block. Where the carry is there when a tile begins, it goes on by a few rows at a time.
// Otherwise it does all that does not need the carry, waits, hands the carry on at once and then writes its output. The
// numbers are the same both ways. A tile waits only for tiles that were begun before it, so none waits for ever.
#include <algorithm>
#include <thread>

#include "aggregation.h"
#include "element.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pom::cpu {
namespace {

// What is written before it is summed on: few elements, and whole blocks of the kernels' rows, which are summed apart.
constexpr int64_t kStepElements = 4096;
constexpr int64_t kStepRows = 16;
constexpr int kPauses = 1000;  // before a waiting thread lets others run

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

}  // namespace

struct Aggregation::Tile {
  Layout::Place place;
  Carry* carry;

  // Of its own tokens.
  double weight;
  float sum[kCausalChannels];
  float rest[kCausalChannels];
  float weights[kMaxCausalTokens];
  alignas(64) float prefix[kCausalElements];
  // Of the tokens before it.
  double weight_before;
  float sum_before[kCausalChannels];
  float rest_before[kCausalChannels];
  // Of all of them.
  float scales[kMaxCausalTokens];
};

void Aggregation::causal(int64_t task) {
  // Not on the stack, which may be small, and in the cache from one tile to the next.
  static thread_local Tile tile;
  const Layout::Place place = layout_.place(task);
  tile.place = place;
  tile.carry = &carries_[static_cast<size_t>(place.batch * layout_.blocks + place.block)];
  begin(&tile);
  const std::atomic<int64_t>& turn = tile.carry->tile;
  if (turn.load(std::memory_order_acquire) == place.chunk) {
    take_over(&tile);
    read_scales(&tile);
    const int64_t step = std::max(kStepElements / (layout_.scratch() * kStepRows), int64_t{1}) * kStepRows;
    for (int64_t row = 0; row < place.tokens; row += step) {
      const int64_t count = std::min(step, place.tokens - row);
      sum_rows(&tile, row, count);
      write_rows(tile, row, count);
    }
    hand_on(tile);
  } else {
    sum_rows(&tile, 0, place.tokens);
    for (int tries = 0; turn.load(std::memory_order_acquire) != place.chunk; ++tries) {
      tries < kPauses ? pause() : std::this_thread::yield();
    }
    take_over(&tile);
    hand_on(tile);
    read_scales(&tile);
    write_rows(tile, 0, place.tokens);
  }
}

void Aggregation::begin(Tile* tile) const {
  std::fill_n(tile->sum, layout_.scratch(), 0.0F);
  std::fill_n(tile->rest, layout_.scratch(), 0.0F);
  const Layout::Place& place = tile->place;
  tile->weight = problem_.has_mask ? read_weights(place.batch, place.token, place.tokens, tile->weights)
                                   : static_cast<double>(place.tokens);
}

// The running sums of the tile's own tokens.
void Aggregation::sum_rows(Tile* tile, int64_t first, int64_t count) const {
  Rows rows = rows_at(tile->place, tile->place.token + first, count);
  rows.weights = problem_.has_mask ? tile->weights + first : nullptr;
  rows.sum = tile->sum;
  rows.rest = tile->rest;
  rows.prefix = tile->prefix + first * layout_.scratch();
  rows_functions_.prefix(rows);
}

void Aggregation::write_rows(const Tile& tile, int64_t first, int64_t count) const {
  Output output = output_at(tile.place, tile.place.token + first, count);
  output.prefix = tile.prefix + first * layout_.scratch();
  output.sum = tile.sum_before;
  output.rest = tile.rest_before;
  output.scales = tile.scales + first;
  output_function_(output);
}

void Aggregation::take_over(Tile* tile) const {
  tile->weight_before = tile->carry->weight;
  std::copy_n(tile->carry->sum, layout_.scratch(), tile->sum_before);
  std::copy_n(tile->carry->rest, layout_.scratch(), tile->rest_before);
}

// The carry with the tile's own sums, added as in the kernels (Knuth's two-sum).
void Aggregation::hand_on(const Tile& tile) const {
  Carry& carry = *tile.carry;
  for (int64_t i = 0; i < layout_.scratch(); ++i) {
    const float old = tile.sum_before[i];
    const float updated = old + tile.sum[i];
    const float taken = updated - old;
    const float lost = (old - (updated - taken)) + (tile.sum[i] - taken);
    carry.sum[i] = updated;
    carry.rest[i] = tile.rest_before[i] + (tile.rest[i] + lost);
  }
  carry.weight = tile.weight_before + tile.weight;
  carry.tile.store(tile.place.chunk + 1, std::memory_order_release);
}

void Aggregation::read_scales(Tile* tile) const {
  double weight = 0.0;
  for (int64_t i = 0; i < tile->place.tokens; ++i) {
    weight += problem_.has_mask ? static_cast<double>(tile->weights[i]) : 1.0;
    tile->scales[i] = scale(tile->weight_before + weight);
  }
}

}  // namespace pom::cpu
