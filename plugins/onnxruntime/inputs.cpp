#include "inputs.h"

#include <string>

#include "status.h"

namespace pom::onnxruntime {

DataType data_type(ONNXTensorElementDataType type, const char* tensor) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return DataType::kFloat32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return DataType::kFloat16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return DataType::kBFloat16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL:
      return DataType::kBool;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      return DataType::kInt64;
    default:
      throw InvalidNode(std::string(tensor) + " is of ONNX element type " + std::to_string(type) +
                        ": the op takes float32, float16 and bfloat16, bool as a mask and int64 as a length");
  }
}

Inputs::Inputs(const OpSignature& signature, const Ort::KernelContext& context) : infos_(signature.inputs) {
  for (size_t i = 0; i < context.GetInputCount(); ++i) {
    values_.at(i) = context.GetInput(i);
    if (values_[i]) {
      const auto tensor = values_[i].GetTensorTypeAndShapeInfo();
      infos_[i] = {true, data_type(tensor.GetElementType(), signature.input_names[i]), tensor.GetShape()};
    }
  }
}

const void* Inputs::data(size_t position) const {
  const Ort::ConstValue& value = values_.at(position);
  return value ? value.GetTensorRawData() : nullptr;
}

}  // namespace pom::onnxruntime
