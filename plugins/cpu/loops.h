// The loops of every mode over the features of every form.
#pragma once

#include "features.h"
#include "iterate.h"

namespace pom::cpu {
namespace {

// Rows are read in blocks, so that the running sum is touched once a block, and computed a few at a time, so that
// their multiply-adds overlap and still fit the registers.
constexpr int kBlockRows = 8;
constexpr int kRowsAtOnce = 4;

// Unrolled where kParts is known, so that each part's code is its own.
template <int kParts, typename Body>
POM_ALWAYS_INLINE inline void for_each_part(int64_t parts, const Body& body) {
  if constexpr (kParts == 0) {
    for (int64_t part = 0; part < parts; ++part) {
      body(part);
    }
  } else {
    body(0);
    if constexpr (kParts == 2) {
      body(1);
    }
  }
}

// sum += term, with the rounding error added to rest (Knuth's two-sum): long sums stay at float32's own precision.
template <typename V>
POM_ALWAYS_INLINE inline void add_compensated(float* sum, float* rest, V term) {
  const V old = V::load(sum, AllLanes{});
  const V updated = V::add(old, term);
  const V taken = V::subtract(updated, old);
  const V lost = V::add(V::subtract(old, V::subtract(updated, taken)), V::subtract(term, taken));
  V::store(sum, updated, AllLanes{});
  V::store(rest, V::add(V::load(rest, AllLanes{}), lost), AllLanes{});
}

// What a mode does with the features of one part of a vector of columns, row by row.

// y = p
template <typename V, typename Block>
class Written {
 public:
  POM_ALWAYS_INLINE Written(const Block& block, int64_t part, int64_t column)
      : y_(static_cast<typename Block::Element*>(block.rows.y) + block.first * block.rows.stride +
           part * block.rows.part_stride + column),
        stride_(block.rows.stride) {}

  template <typename Lanes>
  POM_ALWAYS_INLINE void take(V p, int row, Lanes lanes) const {
    V::store(y_ + row * stride_, p, lanes);
  }
  POM_ALWAYS_INLINE void finish() const {}

 private:
  typename Block::Element* const y_;
  const int64_t stride_;
};

// sum += weights * p
template <typename V, typename Block>
class Accumulated {
 public:
  POM_ALWAYS_INLINE Accumulated(const Block& block, int64_t part, int64_t column)
      : block_(block), scratch_(part * block.rows.scratch_stride + column), total_(V::broadcast(0.0F)) {}

  template <typename Lanes>
  POM_ALWAYS_INLINE void take(V p, int row, Lanes) {
    total_ = block_.add(total_, p, row);
  }
  POM_ALWAYS_INLINE void finish() const {
    add_compensated(block_.rows.sum + scratch_, block_.rows.rest + scratch_, total_);
  }

 private:
  const Block& block_;
  const int64_t scratch_;
  V total_;
};

// The same, with the running sum after every row.
template <typename V, typename Block>
class Prefix {
 public:
  POM_ALWAYS_INLINE Prefix(const Block& block, int64_t part, int64_t column)
      : block_(block),
        scratch_(part * block.rows.scratch_stride + column),
        stride_(block.rows.parts * block.rows.prefix_stride),
        prefix_(block.rows.prefix + block.first * stride_ + part * block.rows.prefix_stride + column),
        before_(
            V::add(V::load(block.rows.sum + scratch_, AllLanes{}), V::load(block.rows.rest + scratch_, AllLanes{}))),
        total_(V::broadcast(0.0F)) {}

  template <typename Lanes>
  POM_ALWAYS_INLINE void take(V p, int row, Lanes) {
    total_ = block_.add(total_, p, row);
    V::store(prefix_ + row * stride_, V::add(before_, total_), AllLanes{});
  }
  POM_ALWAYS_INLINE void finish() const {
    add_compensated(block_.rows.sum + scratch_, block_.rows.rest + scratch_, total_);
  }

 private:
  const Block& block_;
  const int64_t scratch_;
  const int64_t stride_;
  float* const prefix_;
  const V before_;
  V total_;
};

template <typename V, typename T, template <typename, typename> class Features,
          template <typename, typename> class ModeOf, bool kWeighted>
void run(const Rows& rows) {
  for_each_block<kBlockRows>(rows.count, [&](int64_t first, auto size) POM_ALWAYS_INLINE {
    constexpr int kRows = decltype(size)::value;
    constexpr int kStep = kRows < kRowsAtOnce ? kRows : kRowsAtOnce;
    using RowBlock = Block<T, kRows, kWeighted>;
    using BlockFeatures = Features<V, RowBlock>;
    const RowBlock block(rows, first);
    const BlockFeatures features{block};
    // One part after the other: a part's rows lie apart in memory, and few such streams are read faster than many.
    typename BlockFeatures::State states[kMaxBlockColumns / V::kWidth];
    for_each_part<BlockFeatures::kParts>(rows.parts, [&](int64_t part) POM_ALWAYS_INLINE {
      for_each_vector<V>(rows.columns, [&](int64_t column, auto lanes) POM_ALWAYS_INLINE {
        auto* state = states + column / V::kWidth;
        ModeOf<V, RowBlock> mode(block, part, column);
        block.template prefetch<V::kWidth>(part, column);
        for (int row = 0; row < kRows; row += kStep) {
          V p[kStep];
          features.template compute<kStep>(part, row, column, lanes, state, p);
          for (int i = 0; i < kStep; ++i) {
            mode.take(p[i], row + i, lanes);
          }
        }
        mode.finish();
      });
    });
  });
}

template <typename V, typename T, template <typename, typename> class Features,
          template <typename, typename> class ModeOf>
void run_summed(const Rows& rows) {
  rows.weights == nullptr ? run<V, T, Features, ModeOf, false>(rows) : run<V, T, Features, ModeOf, true>(rows);
}

template <typename V, typename T, template <typename, typename> class Features>
constexpr RowsFunctions rows_functions() {
  return {run<V, T, Features, Written, false>, run_summed<V, T, Features, Accumulated>,
          run_summed<V, T, Features, Prefix>};
}

template <typename V, typename T>
constexpr FeaturesFunctions features_functions() {
  return {rows_functions<V, T, Power>(), rows_functions<V, T, Rotated>(), rows_functions<V, T, RotatedByFloat>(),
          rows_functions<V, T, Product>()};
}

}  // namespace
}  // namespace pom::cpu
