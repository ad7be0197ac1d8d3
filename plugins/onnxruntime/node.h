// A node as every kernel sees it: its op, its attributes, and the requirements on its inputs.
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
  // Throws InvalidNode if attributes or the types of inputs violate the contract.
  Node(const OpSignature& signature, const Ort::ConstKernelInfo& info);

  [[nodiscard]] const OpSignature& signature() const { return signature_; }
  [[nodiscard]] const Attributes& attributes() const { return attributes_.aggregation; }
  // The position of an input of the aggregation in the node.
  [[nodiscard]] size_t position(Input input) const { return signature_.position(input); }

  // Describes a call, with inputs in the order of the signature. Throws InvalidNode if they do not fit.
  [[nodiscard]] OpCall describe(const std::vector<TensorInfo>& inputs) const;

 private:
  void check_types(const Ort::ConstKernelInfo& info) const;
  void check_outputs(const Ort::ConstKernelInfo& info) const;

  const OpSignature& signature_;
  const OpAttributes attributes_;
};

// Creates the outputs of a call, in the order of kOutputs; null for those that the node lacks or nobody uses.
[[nodiscard]] std::array<void*, kOutputs.size()> make_outputs(const OpCall& call, const Ort::KernelContext& context);

// Throws InvalidNode for a type that the contract does not know.
[[nodiscard]] DataType type_at(const OpSignature& signature, const Ort::ConstKernelInfo& info, size_t position);

}  // namespace pom::onnxruntime
