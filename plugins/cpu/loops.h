// The loops of each mode over the features of each form.
#pragma once

#include "features.h"
#include "iterate.h"

namespace pom::cpu {
namespace {

// Rows are read in blocks, so that the running sum is only accessed once per block. Vectors are computed a few at a
// time, so that their multiply-adds overlap but still fit into the registers.
constexpr int kAtOnce = 4;

// Unrolled if kParts is known, so that each part has code of its own.
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

// sum += term, adding the rounding error to rest (Knuth's two-sum), so that long sums keep float32's precision.
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

// If multiply-add is a single instruction, a weight of 1 costs nothing, and one loop is enough.
template <typename V>
bool counts_weights(const Rows& rows) {
  return V::kFused || rows.weights != nullptr;
}

// Not unrolled, since the last few lanes of a row are often read one by one.
template <typename Lanes, int kRows>
constexpr int kRowsAtOnce = 1;
template <int kRows>
constexpr int kRowsAtOnce<AllLanes, kRows> = kRows < kAtOnce ? kRows : kAtOnce;

template <typename V, typename T, typename Form, template <typename, typename> class ModeOf, bool kWeighted>
void run(const Rows& rows) {
  for_each_block<kBlockRows>(rows.count, [&](int64_t first, auto size) POM_ALWAYS_INLINE {
    constexpr int kRows = decltype(size)::value;
    using RowBlock = Block<T, kRows, kWeighted>;
    using Features = typename Form::template In<V, RowBlock>;
    const RowBlock block(rows, first);
    const Features features{block};
    // One part after the other: a part's rows are apart in memory, and a few such streams are read faster than many.
    typename Features::State states[kMaxBlockColumns / V::kWidth];
    for_each_part<Features::kParts>(rows.parts, [&](int64_t part) POM_ALWAYS_INLINE {
      for_each_vector<V>(rows.columns, [&](int64_t column, auto lanes) POM_ALWAYS_INLINE {
        auto* state = states + column / V::kWidth;
        ModeOf<V, RowBlock> mode(block, part, column);
        block.template prefetch<V, 1>(kRows, part, column);
        constexpr int kStep = kRowsAtOnce<decltype(lanes), kRows>;
#pragma GCC unroll 1
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

template <typename V, typename T, typename Form>
void run_features(const Rows& rows) {
  run<V, T, Form, Written, false>(rows);
}

template <typename V, typename T, typename Form>
void run_accumulate(const Rows& rows) {
  if (counts_weights<V>(rows)) {
    run<V, T, Form, Accumulated, true>(rows);
  } else {
    run<V, T, Form, Accumulated, V::kFused>(rows);
  }
}

// sum += weights * p, and after every row an average: y = (before + sum so far) * scales. Row by row, because a row of
// x and one of y are often whole pages apart: loads wait for stores whose addresses only look like theirs, and a
// processor that writes past its caches can only hold few lines.
//
// running contains, in turn, a vector of the sum before this block of rows and one of the sum of its own rows so far.
template <typename V, typename T, typename Form, bool kStreamed, bool kWeighted, typename To>
POM_ALWAYS_INLINE inline void average_row(const Rows& rows, int64_t row, To* y, int64_t part_stride) {
  using RowBlock = Block<T, 1, kWeighted>;
  using Features = typename Form::template In<V, RowBlock>;
  const RowBlock block(rows, row);
  const Features features{block};
  typename Features::State states[kMaxBlockColumns / V::kWidth];
  const V scale = V::broadcast(rows.scales[row]);
  for_each_part<Features::kParts>(rows.parts, [&](int64_t part) POM_ALWAYS_INLINE {
    To* const to = y + part * part_stride;
    float* const running = rows.running + 2 * part * rows.scratch_stride;
    for_each_vectors<V, kAtOnce>(rows.columns, [&](int64_t column, auto lanes, auto together) POM_ALWAYS_INLINE {
      using Vectors = Step<V, 1, decltype(together)::value>;
      block.template prefetch<V, Vectors::kCount>(kBlockRows, part, column);
      V p[Vectors::kCount];
      features.template compute<Vectors>(part, 0, column, lanes, states + column / V::kWidth, p);
      for (int i = 0; i < Vectors::kCount; ++i) {
        float* const base = running + 2 * (column + Vectors::column(i));
        float* const total = base + V::kWidth;
        const V so_far = block.add(V::load(total, AllLanes{}), p[i], 0);
        V::store(total, so_far, AllLanes{});
        p[i] = V::multiply(V::add(V::load(base, AllLanes{}), so_far), scale);
      }
      write_vectors<kStreamed, Vectors::kCount>(to + column, p, lanes);
    });
    // If the weights sum to 0, the result is not sum * 0, because the sum may be NaN.
    if (kWeighted && rows.scales[row] == 0.0F) {
      if constexpr (kStreamed) {
        V::finish_streams();  // earlier writes must arrive first
      }
      __builtin_memset(to, 0, static_cast<size_t>(rows.columns) * sizeof(To));
    }
  });
}

template <typename V, typename T, typename Form, bool kStreamed, bool kWeighted, typename To>
void average(const Rows& all, To* y, int64_t stride, int64_t part_stride) {
  const Rows rows = all;  // a local copy, which no store can change
  const int64_t scratch = rows.parts * rows.scratch_stride;
  // Blocks of kBlockRows, then the remaining rows one by one, as in run().
  int64_t last = 0;
  for (int64_t first = 0; first < rows.count; first = last) {
    last = first + (rows.count - first < kBlockRows ? 1 : kBlockRows);
    for (int64_t i = 0; i < scratch; i += V::kWidth) {
      const V sum = V::add(V::load(rows.sum + i, AllLanes{}), V::load(rows.rest + i, AllLanes{}));
      V::store(rows.running + 2 * i, V::add(V::load(rows.before + i, AllLanes{}), sum), AllLanes{});
      V::store(rows.running + 2 * i + V::kWidth, V::broadcast(0.0F), AllLanes{});
    }
    for (int64_t row = first; row < last; ++row) {
      average_row<V, T, Form, kStreamed, kWeighted>(rows, row, y + row * stride, part_stride);
    }
    for (int64_t i = 0; i < scratch; i += V::kWidth) {
      add_compensated(rows.sum + i, rows.rest + i, V::load(rows.running + 2 * i + V::kWidth, AllLanes{}));
    }
  }
}

template <typename V, typename T, typename Form, bool kStreamed, typename To>
void run_average(const Rows& rows, To* y, int64_t stride, int64_t part_stride) {
  if (counts_weights<V>(rows)) {
    average<V, T, Form, kStreamed, true>(rows, y, stride, part_stride);
  } else {
    average<V, T, Form, kStreamed, V::kFused>(rows, y, stride, part_stride);
  }
}

template <typename V, typename T, typename Form>
void run_average(const Rows& rows) {
  if (rows.means != nullptr) {
    run_average<V, T, Form, false>(rows, rows.means, rows.parts * rows.scratch_stride, rows.scratch_stride);
    return;
  }
  T* const y = static_cast<T*>(rows.y);
  if constexpr (V::kStreams) {
    if (rows.streamed) {
      run_average<V, T, Form, true>(rows, y, rows.stride, rows.part_stride);
      V::finish_streams();
      return;
    }
  }
  run_average<V, T, Form, false>(rows, y, rows.stride, rows.part_stride);
}

template <typename V, typename T, typename Form>
constexpr RowsFunctions rows_functions() {
  return {run_features<V, T, Form>, run_accumulate<V, T, Form>, run_average<V, T, Form>};
}

template <typename V, typename T>
constexpr FeaturesFunctions features_functions() {
  return {rows_functions<V, T, PowerForm>(), rows_functions<V, T, RotatedForm<T>>(),
          rows_functions<V, T, RotatedForm<float>>(), rows_functions<V, T, ProductForm>()};
}

}  // namespace
}  // namespace pom::cpu
