// A node as every kernel sees it: which op it is, its attributes, and what its inputs must be.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "pom/aggregate.h"
#include "pom/gate.h"
#include "signature.h"

namespace pom::onnxruntime {

// One call.
struct NodeProblem {
  Problem aggregation;
  std::optional<Gate> gate;  // of the gated op

  [[nodiscard]] std::vector<int64_t> output_shape() const;
  // In the order of kOutputs; null for those that the node lacks, or that nobody uses.
  [[nodiscard]] std::array<void*, kOutputs.size()> make_outputs(const Ort::KernelContext& context) const;
};

class Node {
 public:
  // Throws InvalidNode where attributes or the types of inputs are not the contract's.
  Node(const OpSignature& signature, const Ort::ConstKernelInfo& info);

  [[nodiscard]] const OpSignature& signature() const { return signature_; }
  [[nodiscard]] const Attributes& attributes() const { return attributes_; }
  // Where the node has an input of the aggregation.
  [[nodiscard]] size_t position(Input input) const { return signature_.position(input); }

  // Of inputs in the order of the signature. Throws InvalidNode where they do not fit.
  [[nodiscard]] NodeProblem describe(const std::vector<TensorInfo>& inputs) const;

 private:
  void check_types(const Ort::ConstKernelInfo& info) const;
  void check_outputs(const Ort::ConstKernelInfo& info) const;

  const OpSignature& signature_;
  const Attributes attributes_;
  const std::optional<GateActivation> activation_;  // of the gated op
};

// Throws InvalidNode for a type that the contract does not know.
[[nodiscard]] DataType type_at(const OpSignature& signature, const Ort::ConstKernelInfo& info, size_t position);

}  // namespace pom::onnxruntime
