// The loops of every mode over the features of every form.
#pragma once

#include "features.h"
#include "iterate.h"

namespace pom::cpu {
namespace {

// Rows are read in blocks, so that the running sum is touched once a block, and vectors computed a few at a time, so
// that their multiply-adds overlap and still fit the registers.
constexpr int kAtOnce = 4;

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

template <typename V, typename T, template <typename, typename> class Features,
          template <typename, typename> class ModeOf, bool kWeighted>
void run(const Rows& rows) {
  for_each_block<kBlockRows>(rows.count, [&](int64_t first, auto size) POM_ALWAYS_INLINE {
    constexpr int kRows = decltype(size)::value;
    constexpr int kStep = kRows < kAtOnce ? kRows : kAtOnce;
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
        block.template prefetch<V, 1>(kRows, part, column);
        for (int row = 0; row < kRows; row += kStep) {
          V p[kStep];
          features.template compute<Step<V, kStep, 1>>(part, row, column, lanes, state, p);
          for (int i = 0; i < kStep; ++i) {
            mode.take(p[i], row + i, lanes);
          }
        }
        mode.finish();
      });
    });
  });
}

// Where the averages of one row and part go.

template <typename V, typename T, bool kStreamed>
class ToOutput {
 public:
  POM_ALWAYS_INLINE ToOutput(const Rows& rows, int64_t row, int64_t part)
      : y_(static_cast<T*>(rows.y) + row * rows.stride + part * rows.part_stride) {}

  template <int kCount, typename Lanes>
  POM_ALWAYS_INLINE void write(int64_t column, const V* values, Lanes lanes) const {
    write_vectors<kStreamed, kCount>(y_ + column, values, lanes);
  }

 private:
  T* const y_;
};

template <typename V>
class ToMeans {
 public:
  POM_ALWAYS_INLINE ToMeans(const Rows& rows, int64_t row, int64_t part)
      : means_(rows.means + (row * rows.parts + part) * rows.scratch_stride) {}

  template <int kCount, typename Lanes>
  POM_ALWAYS_INLINE void write(int64_t column, const V* values, Lanes) const {
    write_vectors<false, kCount>(means_ + column, values, AllLanes{});
  }

 private:
  float* const means_;
};

// sum += weights * p, and after every row an average: y = (before + sum so far) * scales. Row by row: a row of x and
// one of y often lie whole pages apart. Loads wait for stores whose addresses only look like theirs, and a processor
// that writes past its caches can hold but few lines.
template <typename V, typename T, template <typename, typename> class Features, typename Sink, bool kWeighted>
void run_averaged(const Rows& all) {
  const Rows rows = all;  // here, so that no store may change it
  const int64_t scratch = rows.parts * rows.scratch_stride;
  float* const base = rows.running;
  float* const total = rows.running + scratch;
  for_each_block<kBlockRows>(rows.count, [&](int64_t first, auto size) POM_ALWAYS_INLINE {
    constexpr int kRows = decltype(size)::value;
    for (int64_t i = 0; i < scratch; i += V::kWidth) {
      const V sum = V::add(V::load(rows.sum + i, AllLanes{}), V::load(rows.rest + i, AllLanes{}));
      V::store(base + i, V::add(V::load(rows.before + i, AllLanes{}), sum), AllLanes{});
      V::store(total + i, V::broadcast(0.0F), AllLanes{});
    }
    for (int64_t row = first; row < first + kRows; ++row) {
      using RowBlock = Block<T, 1, kWeighted>;
      using RowFeatures = Features<V, RowBlock>;
      const RowBlock block(rows, row);
      const RowFeatures features{block};
      typename RowFeatures::State states[kMaxBlockColumns / V::kWidth];
      for_each_part<RowFeatures::kParts>(rows.parts, [&](int64_t part) POM_ALWAYS_INLINE {
        const Sink sink(rows, row, part);
        const float scale = rows.scales[row];
        // Not sum * 0 where the weights sum to 0: the sum may be NaN.
        const bool none = kWeighted && scale == 0.0F;
        float* const part_base = base + part * rows.scratch_stride;
        float* const part_total = total + part * rows.scratch_stride;
        for_each_vectors<V, kAtOnce>(rows.columns, [&](int64_t column, auto lanes, auto together) POM_ALWAYS_INLINE {
          using Vectors = Step<V, 1, decltype(together)::value>;
          block.template prefetch<V, Vectors::kCount>(kBlockRows, part, column);
          V p[Vectors::kCount];
          features.template compute<Vectors>(part, 0, column, lanes, states + column / V::kWidth, p);
          for (int i = 0; i < Vectors::kCount; ++i) {
            const int64_t at = column + Vectors::column(i);
            const V so_far = block.add(V::load(part_total + at, AllLanes{}), p[i], 0);
            V::store(part_total + at, so_far, AllLanes{});
            const V average = V::multiply(V::add(V::load(part_base + at, AllLanes{}), so_far), V::broadcast(scale));
            p[i] = none ? V::broadcast(0.0F) : average;
          }
          sink.template write<Vectors::kCount>(column, p, lanes);
        });
      });
    }
    for (int64_t i = 0; i < scratch; i += V::kWidth) {
      add_compensated(rows.sum + i, rows.rest + i, V::load(total + i, AllLanes{}));
    }
  });
}

template <typename V, typename T, template <typename, typename> class Features,
          template <typename, typename> class ModeOf>
void run_summed(const Rows& rows) {
  rows.weights == nullptr ? run<V, T, Features, ModeOf, false>(rows) : run<V, T, Features, ModeOf, true>(rows);
}

template <typename V, typename T, template <typename, typename> class Features, typename Sink>
void run_averaged(const Rows& rows) {
  rows.weights == nullptr ? run_averaged<V, T, Features, Sink, false>(rows)
                          : run_averaged<V, T, Features, Sink, true>(rows);
}

template <typename V, typename T, template <typename, typename> class Features>
void run_average(const Rows& rows) {
  if (rows.streamed) {
    run_averaged<V, T, Features, ToOutput<V, T, true>>(rows);
    V::finish_streams();
  } else {
    run_averaged<V, T, Features, ToOutput<V, T, false>>(rows);
  }
}

template <typename V, typename T, template <typename, typename> class Features>
constexpr RowsFunctions rows_functions() {
  return {run<V, T, Features, Written, false>, run_summed<V, T, Features, Accumulated>, run_average<V, T, Features>,
          run_averaged<V, T, Features, ToMeans<V>>};
}

template <typename V, typename T>
constexpr FeaturesFunctions features_functions() {
  return {rows_functions<V, T, Power>(), rows_functions<V, T, Rotated>(), rows_functions<V, T, RotatedByFloat>(),
          rows_functions<V, T, Product>()};
}

}  // namespace
}  // namespace pom::cpu
