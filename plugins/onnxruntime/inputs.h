// A call's inputs, as ONNX Runtime provides them and as validation needs them.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <array>
#include <vector>

#include "pom/aggregate.h"
#include "signature.h"

namespace pom::onnxruntime {

// Throws InvalidNode for a type that the contract does not know.
[[nodiscard]] DataType data_type(ONNXTensorElementDataType type, const char* tensor);

class Inputs {
 public:
  Inputs(const OpSignature& signature, const Ort::KernelContext& context);

  // By position in the node; inputs that the node lacks count as not given, and have no data.
  [[nodiscard]] const std::vector<TensorInfo>& infos() const { return infos_; }
  [[nodiscard]] const void* data(size_t position) const;

 private:
  std::array<Ort::ConstValue, kGatedInputs.size()> values_;
  std::vector<TensorInfo> infos_;
};

}  // namespace pom::onnxruntime
