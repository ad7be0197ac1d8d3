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

// What is written before it is summed on: few elements, for the first cache, and whole blocks of the kernels' rows,
// which are summed apart.
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

// Some rows and columns of a tile, whose prefix sums are held at once.
struct Aggregation::Step {
  int64_t row;
  int64_t rows;
  int64_t column;
  int64_t columns;

  [[nodiscard]] Layout::Place of(Layout::Place place) const {
    place.column += column;
    place.channel += column;
    place.columns = columns;
    return place;
  }
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
    const int64_t rows = std::max(kStepElements / (layout_.scratch() * kStepRows), int64_t{1}) * kStepRows;
    const int64_t columns = std::max(kStepElements / (rows * layout_.parts) / kPadding, int64_t{1}) * kPadding;
    for (int64_t row = 0; row < place.tokens; row += rows) {
      for (int64_t column = 0; column < place.columns; column += columns) {
        const Step step{row, std::min(rows, place.tokens - row), column, std::min(columns, place.columns - column)};
        sum_rows(&tile, step);
        write_rows(tile, step);
      }
    }
    hand_on(tile);
  } else {
    const Step all{0, place.tokens, 0, place.columns};
    sum_rows(&tile, all);
    for (int tries = 0; turn.load(std::memory_order_acquire) != place.chunk; ++tries) {
      tries < kPauses ? pause() : std::this_thread::yield();
    }
    take_over(&tile);
    hand_on(tile);
    read_scales(&tile);
    write_rows(tile, all);
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
void Aggregation::sum_rows(Tile* tile, const Step& step) const {
  Rows rows = rows_at(step.of(tile->place), tile->place.token + step.row, step.rows);
  rows.weights = problem_.has_mask ? tile->weights + step.row : nullptr;
  rows.sum = tile->sum + step.column;
  rows.rest = tile->rest + step.column;
  rows.prefix = tile->prefix;
  rows.prefix_stride = padded(step.columns);
  rows_functions_.prefix(rows);
}

void Aggregation::write_rows(const Tile& tile, const Step& step) const {
  Output output = output_at(step.of(tile.place), tile.place.token + step.row, step.rows);
  output.prefix = tile.prefix;
  output.prefix_stride = padded(step.columns);
  output.sum = tile.sum_before + step.column;
  output.rest = tile.rest_before + step.column;
  output.scales = tile.scales + step.row;
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
