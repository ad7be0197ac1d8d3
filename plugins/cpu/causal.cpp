// The causal mode: tiles of some tokens and one block of columns, in a single pass over memory.
//
// A tile sums its own tokens and adds the sums of earlier tiles: the carry, which is passed from tile to tile of a
// block. If the carry is available when a tile begins, it writes averages while it sums. Otherwise it first sums,
// waits, passes the carry on at once, and then sums again and writes. The numbers are the same both ways. A tile only
// waits for tiles that started before it, so none waits forever.
#include <algorithm>
#include <thread>

#include "aggregation.h"
#include "element.h"
#include "pause.h"
#include "pom/contract.h"

namespace pom::cpu {
namespace {

static_assert(kMaxDegree * kPadding <= kStreamedCausalChannels, "a padding of every part");
constexpr int kPauses = 1000;  // before a waiting thread yields

}  // namespace

struct Aggregation::Tile {
  Layout::Place place;
  Carry* carry;
  // For a block with a single tile.
  Carry alone;
  alignas(64) float alone_sums[2 * kCausalChannels];

  // The weight of its own tokens.
  double weight;
  alignas(64) float sum[kCausalChannels];
  alignas(64) float rest[kCausalChannels];
  float weights[kMaxCausalTokens];
  // The weight of the tokens before it.
  double weight_before;
  alignas(64) float sum_before[kCausalChannels];
  alignas(64) float rest_before[kCausalChannels];
  alignas(64) float before[kCausalChannels];
  alignas(64) float running[2 * kCausalChannels];
  // For each token, the factor for the mean of all tokens so far.
  float scales[kMaxCausalTokens];
  alignas(64) float means[kCausalRows * kCausalChannels];
};

void Aggregation::prepare_causal() {
  prepare_carries();
  add_phase(layout_.tasks(), &Aggregation::causal);
}

void Aggregation::prepare_carries() {
  if (layout_.chunks == 1) {
    return;
  }
  const int64_t blocks = layout_.batch * layout_.blocks;
  carries_.reset(new Carry[static_cast<size_t>(blocks)]);
  carry_sums_ = uninitialized<float>(blocks * 2 * layout_.scratch());
  for (int64_t block = 0; block < blocks; ++block) {
    Carry& carry = carries_[static_cast<size_t>(block)];
    carry.sum = carry_sums_.get() + block * 2 * layout_.scratch();
    carry.rest = carry.sum + layout_.scratch();
    const int64_t first_task = block / layout_.blocks * layout_.chunks * layout_.blocks + block % layout_.blocks;
    start(layout_.place(first_task), &carry);
  }
}

void Aggregation::causal(int64_t task) {
  // Not on the stack, which may be small, and in the cache from one tile to the next.
  static thread_local Tile tile;
  const Layout::Place place = layout_.place(task);
  tile.place = place;
  if (layout_.chunks == 1) {
    tile.alone.sum = tile.alone_sums;
    tile.alone.rest = tile.alone_sums + layout_.scratch();
    start(place, &tile.alone);
    tile.carry = &tile.alone;
  } else {
    tile.carry = &carries_[static_cast<size_t>(place.batch * layout_.blocks + place.block)];
  }
  tile.weight = problem_.has_mask ? read_weights(place.batch, place.token, place.tokens, tile.weights)
                                  : static_cast<double>(place.tokens);
  const std::atomic<int64_t>& turn = tile.carry->tile;
  if (turn.load(std::memory_order_acquire) == place.chunk) {
    take_over(&tile);
    write_averages(&tile);
    hand_on(tile);
  } else {
    clear(&tile);
    rows_functions_.accumulate(rows_of(&tile, 0, place.tokens));
    for (int tries = 0; turn.load(std::memory_order_acquire) != place.chunk; ++tries) {
      tries < kPauses ? pause() : std::this_thread::yield();
    }
    take_over(&tile);
    hand_on(tile);
    write_averages(&tile);
  }
}

Rows Aggregation::rows_of(Tile* tile, int64_t row, int64_t count) const {
  Rows rows = rows_at(tile->place, tile->place.token + row, count);
  rows.weights = problem_.has_mask ? tile->weights + row : nullptr;
  rows.sum = tile->sum;
  rows.rest = tile->rest;
  return rows;
}

void Aggregation::clear(Tile* tile) const {
  std::fill_n(tile->sum, layout_.scratch(), 0.0F);
  std::fill_n(tile->rest, layout_.scratch(), 0.0F);
}

// Sums the tile's own tokens, and writes y.
void Aggregation::write_averages(Tile* tile) const {
  clear(tile);
  read_scales(tile);
  const int64_t each = gated_ ? kCausalRows : tile->place.tokens;
  for (int64_t row = 0; row < tile->place.tokens; row += each) {
    const int64_t count = std::min(each, tile->place.tokens - row);
    Output output = output_at(tile->place, tile->place.token + row, count);
    Rows rows = rows_of(tile, row, count);
    rows.before = tile->before;
    rows.scales = tile->scales + row;
    rows.running = tile->running;
    if (gated_) {
      rows.means = tile->means;
      output.means = tile->means;
      rows_functions_.average(rows);
      output_function_(output);
    } else {
      rows.y = output.y;
      rows.streamed = streamed_;
      rows_functions_.average(rows);
    }
  }
}

void Aggregation::take_over(Tile* tile) const {
  tile->weight_before = tile->carry->weight;
  std::copy_n(tile->carry->sum, layout_.scratch(), tile->sum_before);
  std::copy_n(tile->carry->rest, layout_.scratch(), tile->rest_before);
  for (int64_t i = 0; i < layout_.scratch(); ++i) {
    tile->before[i] = tile->sum_before[i] + tile->rest_before[i];
  }
}

// Passes on the carry, with the tile's own sums added as in the kernels (Knuth's two-sum).
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
  if (problem_.attributes.stateful && tile.place.chunk == layout_.chunks - 1) {
    write_present(tile.place, carry);
  }
  carry.tile.store(tile.place.chunk + 1, std::memory_order_release);
}

void Aggregation::read_scales(Tile* tile) const {
  const double before = past_weight(tile->place.batch) + tile->weight_before;
  double weight = 0.0;
  for (int64_t i = 0; i < tile->place.tokens; ++i) {
    weight += problem_.has_mask ? static_cast<double>(tile->weights[i]) : 1.0;
    tile->scales[i] = scale(before + weight);
  }
}

}  // namespace pom::cpu
