// Runs a TensorRT engine that `pom-export build` made.
//
//   run_engine ENGINE [NAME=SHAPE[:FILE]]...       run_engine model.engine input_ids=1x256:prompt.bin
//
// FILE holds the input's values, raw and in row-major order; an input without one is zeros. A dynamic input needs a
// shape. Each output is described in a line and written to NAME.bin.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "program.h"

namespace {

class Logger : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* text) noexcept override {
    if (severity <= Severity::kERROR) {
      std::cerr << "TensorRT: " << text << '\n';
    }
  }
};

void check(cudaError_t status) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
  }
}

template <typename T>
std::unique_ptr<T> checked(T* made, const char* what) {
  if (made == nullptr) {
    throw std::runtime_error(std::string("TensorRT returned no ") + what);
  }
  return std::unique_ptr<T>(made);
}

struct Given {
  nvinfer1::Dims shape{};
  std::string file;
};

// NAME=SHAPE[:FILE]
std::pair<std::string, Given> parse_input(const std::string& text) {
  const std::size_t equals = text.find('=');
  const std::size_t colon = text.find(':', equals);
  if (equals == 0 || equals == std::string::npos) {
    throw BadInput(text + " is not NAME=SHAPE or NAME=SHAPE:FILE, such as x=1x16x64");
  }
  Given given;
  given.file = colon == std::string::npos ? "" : text.substr(colon + 1);
  std::istringstream sizes(text.substr(equals + 1, colon == std::string::npos ? colon : colon - equals - 1));
  for (std::string size; std::getline(sizes, size, 'x');) {
    const std::optional<int64_t> number = whole_number(size);
    if (!number || given.shape.nbDims == nvinfer1::Dims::MAX_DIMS) {
      throw BadInput(text + " has no shape of the form 1x16x64");
    }
    given.shape.d[given.shape.nbDims++] = *number;
  }
  if (given.shape.nbDims == 0) {
    throw BadInput(text + " has no shape of the form 1x16x64");
  }
  return {text.substr(0, equals), given};
}

std::map<std::string, Given> parse_inputs(const std::vector<std::string>& texts) {
  std::map<std::string, Given> given;
  for (const std::string& text : texts) {
    const auto [place, is_new] = given.insert(parse_input(text));
    if (!is_new) {
      throw BadInput(place->first + " is given twice");
    }
  }
  return given;
}

std::size_t element_bytes(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kFLOAT:
    case nvinfer1::DataType::kINT32:
      return 4;
    case nvinfer1::DataType::kINT64:
      return 8;
    case nvinfer1::DataType::kHALF:
    case nvinfer1::DataType::kBF16:
      return 2;
    case nvinfer1::DataType::kBOOL:
      return 1;
    default:
      throw std::runtime_error("a tensor has a type that no model of pom-export has");
  }
}

std::string written(const nvinfer1::Dims& shape) {
  std::string text;
  for (int32_t axis = 0; axis < shape.nbDims; ++axis) {
    text += (axis > 0 ? "x" : "") + std::to_string(shape.d[axis]);
  }
  return text;
}

std::size_t bytes_of(const nvinfer1::Dims& shape, nvinfer1::DataType type) {
  std::size_t bytes = element_bytes(type);
  for (int32_t axis = 0; axis < shape.nbDims; ++axis) {
    bytes *= static_cast<std::size_t>(shape.d[axis]);
  }
  return bytes;
}

class DeviceBuffer {
 public:
  explicit DeviceBuffer(std::size_t bytes) { check(cudaMalloc(&data_, bytes == 0 ? 1 : bytes)); }
  DeviceBuffer(DeviceBuffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(DeviceBuffer&&) = delete;
  ~DeviceBuffer() { cudaFree(data_); }
  [[nodiscard]] void* get() const { return data_; }

 private:
  void* data_ = nullptr;
};

// An input or output of the context, and the device memory that holds its values.
struct Tensor {
  std::string name;
  nvinfer1::DataType type;
  nvinfer1::Dims shape;
  DeviceBuffer device;
};

Tensor bind(nvinfer1::IExecutionContext* context, const std::string& name, nvinfer1::DataType type) {
  const nvinfer1::Dims shape = context->getTensorShape(name.c_str());
  Tensor tensor{name, type, shape, DeviceBuffer(bytes_of(shape, type))};
  if (!context->setTensorAddress(name.c_str(), tensor.device.get())) {
    throw std::runtime_error("TensorRT did not accept an address for " + name);
  }
  return tensor;
}

void check_names(const nvinfer1::ICudaEngine& engine, const std::map<std::string, Given>& given) {
  std::set<std::string> inputs;
  std::string listed;
  for (int32_t i = 0; i < engine.getNbIOTensors(); ++i) {
    const char* name = engine.getIOTensorName(i);
    if (engine.getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT) {
      inputs.insert(name);
      listed += (listed.empty() ? "" : ", ") + std::string(name);
    }
  }
  for (const auto& [name, input] : given) {
    if (inputs.count(name) == 0) {
      throw BadInput("the engine has no input " + name + ", but " + listed);
    }
  }
}

Tensor bind_input(nvinfer1::IExecutionContext* context, const std::string& name, nvinfer1::DataType type,
                  const std::map<std::string, Given>& given) {
  const auto found = given.find(name);
  const Given input = found == given.end() ? Given{} : found->second;
  if (found != given.end() && !context->setInputShape(name.c_str(), input.shape)) {
    throw BadInput("the engine does not accept " + name + " of shape " + written(input.shape));
  }
  for (int32_t axis = 0; axis < context->getTensorShape(name.c_str()).nbDims; ++axis) {
    if (context->getTensorShape(name.c_str()).d[axis] < 0) {
      throw BadInput(name + " has dynamic dimensions (" + written(context->getTensorShape(name.c_str())) +
                     "): give a shape, " + name + "=SHAPE");
    }
  }
  Tensor tensor = bind(context, name, type);
  const std::size_t bytes = bytes_of(tensor.shape, type);
  const std::vector<char> values = input.file.empty() ? std::vector<char>(bytes) : read_file(input.file);
  if (values.size() != bytes) {
    throw BadInput(input.file + " has " + std::to_string(values.size()) + " bytes; " + name + " of shape " +
                   written(tensor.shape) + " has " + std::to_string(bytes));
  }
  check(cudaMemcpy(tensor.device.get(), values.data(), bytes, cudaMemcpyHostToDevice));
  return tensor;
}

void write_output(const Tensor& tensor) {
  std::vector<char> values(bytes_of(tensor.shape, tensor.type));
  check(cudaMemcpy(values.data(), tensor.device.get(), values.size(), cudaMemcpyDeviceToHost));
  const std::string path = tensor.name + ".bin";
  std::ofstream file(path, std::ios::binary);
  if (!file.write(values.data(), static_cast<std::streamsize>(values.size())).flush()) {
    throw BadInput("cannot write " + path);
  }
  std::cout << tensor.name << "  " << written(tensor.shape) << "  " << path << '\n';
}

void run(const std::string& path, const std::map<std::string, Given>& given) {
  const std::vector<char> file = read_file(path);
  if (getInferLibMajorVersion() != NV_TENSORRT_MAJOR) {
    throw std::runtime_error("compiled with the headers of TensorRT " + std::to_string(NV_TENSORRT_MAJOR) +
                             ", but the library is version " + std::to_string(getInferLibMajorVersion()) +
                             ": compile with the library's own headers");
  }
  check(cudaFree(nullptr));  // initializes CUDA: if that failed later, TensorRT would abort
  Logger logger;
  const auto runtime = checked(nvinfer1::createInferRuntime(logger), "runtime");
  runtime->setEngineHostCodeAllowed(true);  // the engine contains the plugin
  const auto engine = checked(runtime->deserializeCudaEngine(file.data(), file.size()), "engine");
  check_names(*engine, given);
  const auto context = checked(engine->createExecutionContext(), "context");

  std::vector<Tensor> inputs;
  std::vector<Tensor> outputs;
  for (const bool are_inputs : {true, false}) {  // the outputs' shapes follow from the inputs'
    for (int32_t i = 0; i < engine->getNbIOTensors(); ++i) {
      const char* name = engine->getIOTensorName(i);
      const nvinfer1::DataType type = engine->getTensorDataType(name);
      const bool is_input = engine->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
      if (is_input && are_inputs) {
        inputs.push_back(bind_input(context.get(), name, type, given));
      } else if (!is_input && !are_inputs) {
        outputs.push_back(bind(context.get(), name, type));
      }
    }
  }
  cudaStream_t stream = nullptr;
  check(cudaStreamCreate(&stream));
  const bool enqueued = context->enqueueV3(stream);
  check(cudaStreamSynchronize(stream));
  check(cudaStreamDestroy(stream));
  if (!enqueued) {
    throw std::runtime_error("TensorRT could not run the engine");
  }
  for (const Tensor& tensor : outputs) {
    write_output(tensor);
  }
}

}  // namespace

int main(int count, char** arguments) {
  return run_program(count, arguments, [](const std::vector<std::string>& given) {
    if (given.empty()) {
      throw BadInput("usage: run_engine ENGINE [NAME=SHAPE[:FILE]]...");
    }
    run(given.front(), parse_inputs({given.begin() + 1, given.end()}));
  });
}
