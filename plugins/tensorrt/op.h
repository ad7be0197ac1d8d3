// The library's two ops, and what is fixed when a node is created.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "pom/call.h"

namespace pom::tensorrt {

enum class Op : int32_t { kAggregation, kGated };

// The names of an op's plugins.
[[nodiscard]] constexpr const std::array<const char*, kNameCount>& names_of(Op op) {
  return op == Op::kGated ? kGatedOpNames : kOpNames;
}

// The position of an input of the aggregation in the node.
[[nodiscard]] constexpr int32_t position_of(Op op, Input input) {
  return static_cast<int32_t>(pom::position_of(op == Op::kGated, static_cast<std::size_t>(input)));
}

struct NodeAttributes : OpAttributes {
  [[nodiscard]] Op op() const { return activation ? Op::kGated : Op::kAggregation; }
  [[nodiscard]] int32_t required_inputs() const {
    return position_of(op(), aggregation.stateful ? kPastLength : kCoefficients) + 1;
  }
  [[nodiscard]] int32_t outputs() const { return aggregation.stateful ? static_cast<int32_t>(kOutputs.size()) : 1; }
};

}  // namespace pom::tensorrt
