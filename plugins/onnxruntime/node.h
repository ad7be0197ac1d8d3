// A node as every kernel sees it: which op it is, its attributes, and what its inputs must be.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <array>
#include <cstdint>
#include <vector>

#include "pom/call.h"
#include "signature.h"

namespace pom::onnxruntime {

class Node {
 public:
  // Throws InvalidNode where attributes or the types of inputs are not the contract's.
  Node(const OpSignature& signature, const Ort::ConstKernelInfo& info);

  [[nodiscard]] const OpSignature& signature() const { return signature_; }
  [[nodiscard]] const Attributes& attributes() const { return attributes_.aggregation; }
  // Where the node has an input of the aggregation.
  [[nodiscard]] size_t position(Input input) const { return signature_.position(input); }

  // Of inputs in the order of the signature. Throws InvalidNode where they do not fit.
  [[nodiscard]] OpCall describe(const std::vector<TensorInfo>& inputs) const;

 private:
  void check_types(const Ort::ConstKernelInfo& info) const;
  void check_outputs(const Ort::ConstKernelInfo& info) const;

  const OpSignature& signature_;
  const OpAttributes attributes_;
};

// Outputs of a call, in the order of kOutputs; null for those that the node lacks, or that nobody uses.
[[nodiscard]] std::array<void*, kOutputs.size()> make_outputs(const OpCall& call, const Ort::KernelContext& context);

// Throws InvalidNode for a type that the contract does not know.
[[nodiscard]] DataType type_at(const OpSignature& signature, const Ort::ConstKernelInfo& info, size_t position);

}  // namespace pom::onnxruntime
