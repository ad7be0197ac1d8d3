#include "stream.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <regex>
#include <set>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "program.h"

namespace {

constexpr char kIds[] = "input_ids";
constexpr char kMask[] = "mask";
constexpr char kPast[] = "past_";
// The most tokens of a prompt in a call, and the most bytes of their logits: enough for full speed.
constexpr int64_t kPiece = 2048;
constexpr int64_t kLogitsBytes = 64 << 20;

bool begins_with(const std::string& text, std::string_view start) { return text.rfind(start, 0) == 0; }

// The output that becomes an input of the past in the next call: past_state, present_state; and for caches of keys and
// values, which other exporters name so, past_key_values.0.key, present.0.key.
std::string present_name(const std::string& past) {
  constexpr std::string_view kCaches = "past_key_values.";
  return begins_with(past, kCaches) ? "present." + past.substr(kCaches.size())
                                    : "present_" + past.substr(std::strlen(kPast));
}

// ONNX Runtime's messages can have several lines.
std::string one_line(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

Ort::Session load(const Ort::Env& env, const std::string& model, const std::string& op_library) {
  open_file(model);  // says so if it cannot be read
  try {
    Ort::SessionOptions options;
    options.DisableMemPattern();  // it doubles the memory of a prompt and saves no time
    if (!op_library.empty()) {
      options.RegisterCustomOpsLibrary(op_library.c_str());
    }
    return {env, model.c_str(), options};
  } catch (const Ort::Exception& error) {
    throw BadInput("cannot load " + model + ": " + one_line(error.what()));
  }
}

std::size_t element_bytes(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE:
      return 8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      return 4;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return 2;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL:
      return 1;
    default:
      throw BadInput("a tensor has a type that no model of pom-export has");
  }
}

// A tensor of zeros, which are also an empty state.
Ort::Value zeros(OrtAllocator* allocator, const std::vector<int64_t>& shape, ONNXTensorElementDataType type) {
  Ort::Value value = Ort::Value::CreateTensor(allocator, shape.data(), shape.size(), type);
  std::memset(value.GetTensorMutableRawData(), 0,
              value.GetTensorTypeAndShapeInfo().GetElementCount() * element_bytes(type));
  return value;
}

// The last `count` of some values.
template <typename T>
std::vector<float> last(const Ort::Value& values, std::size_t count) {
  const std::size_t all = values.GetTensorTypeAndShapeInfo().GetElementCount();
  const T* end = values.GetTensorData<T>() + all;
  std::vector<float> found(count);
  std::transform(end - count, end, found.begin(), [](T value) { return static_cast<float>(value); });
  return found;
}

}  // namespace

Stream::Stream(const std::string& model, const std::string& op_library)
    : name_(model), env_(ORT_LOGGING_LEVEL_FATAL, "stream"), session_(load(env_, model, op_library)) {
  check_kind();
  read_inputs();
  read_outputs();
  for (const std::size_t turn : {0, 1}) {
    steps_.push_back(bound(1, turn));
  }
}

// The properties that `pom-export export` writes into the file.
void Stream::check_kind() {
  const Ort::ModelMetadata metadata = session_.GetModelMetadata();
  const auto property = [&](const char* name) {
    const Ort::AllocatedStringPtr value = metadata.LookupCustomMetadataMapAllocated(name, allocator_);
    return std::string(value ? value.get() : "");
  };
  const std::string kind = property("pom_export.stateful");
  if (kind.empty()) {
    throw BadInput(name_ + " keeps no state: export it with --stateful");
  }
  if (kind != "causal") {  // the numbers would depend on how a prompt is split into calls
    throw BadInput(name_ + " is " + kind + ": only causal models are streamed here");
  }
  const std::string limits = property("pom_export.limits");
  std::smatch found;
  if (std::regex_search(limits, found, std::regex("\"tokens\": ?([0-9]+)"))) {
    positions_ = std::stoll(found[1]);
  }
}

void Stream::read_inputs() {
  bool has_ids = false;
  for (std::size_t i = 0; i < session_.GetInputCount(); ++i) {
    const std::string name = session_.GetInputNameAllocated(i, allocator_).get();
    const Ort::TypeInfo type = session_.GetInputTypeInfo(i);
    if (begins_with(name, kPast)) {
      add_part(name, type.GetTensorTypeAndShapeInfo());
    } else if (name == kIds || name == kMask) {
      const std::vector<int64_t> shape = type.GetTensorTypeAndShapeInfo().GetShape();
      if (shape != std::vector<int64_t>{-1, -1}) {
        throw BadInput(name_ + " takes calls of one size: export it with dynamic dimensions");
      }
      (name == kIds ? has_ids : has_mask_) = true;
    } else {
      throw BadInput(name_ + " takes " + name + ", but only language models, which take input_ids, are streamed here");
    }
  }
  if (!has_ids) {
    throw BadInput(name_ + " takes no input_ids: only language models are streamed here");
  }
}

// The first axis is the batch, which is 1 here.
void Stream::add_part(const std::string& name, Ort::ConstTensorTypeAndShapeInfo info) {
  std::vector<int64_t> shape = info.GetShape();
  if (shape.empty() || std::count(shape.begin() + 1, shape.end(), -1) > 0) {
    throw BadInput(name_ + " keeps " + name + ", which grows with every token: only a state of a constant size is " +
                   "streamed here");
  }
  shape.front() = 1;
  const ONNXTensorElementDataType type = info.GetElementType();
  parts_.push_back({name, present_name(name), {zeros(allocator_, shape, type), zeros(allocator_, shape, type)}});
}

void Stream::read_outputs() {
  std::set<std::string> presents;
  for (const Part& part : parts_) {
    presents.insert(part.present);
  }
  for (std::size_t i = 0; i < session_.GetOutputCount(); ++i) {
    const std::string name = session_.GetOutputNameAllocated(i, allocator_).get();
    if (presents.erase(name) == 0 && logits_name_.empty()) {
      const Ort::TypeInfo type = session_.GetOutputTypeInfo(i);
      const auto info = type.GetTensorTypeAndShapeInfo();
      logits_name_ = name;
      logits_type_ = info.GetElementType();
      vocabulary_ = info.GetShape().size() == 3 ? info.GetShape().back() : 0;
    }
  }
  if (!presents.empty()) {
    throw BadInput(name_ + " lacks the output " + *presents.begin() + ": export it again");
  }
  const bool are_floats =
      logits_type_ == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || logits_type_ == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
  if (vocabulary_ <= 0 || !are_floats) {
    throw BadInput(name_ + " has no logits (batch, tokens, vocabulary) in float32 or float16");
  }
  const auto bytes = static_cast<int64_t>(element_bytes(logits_type_));
  piece_ = std::clamp<int64_t>(kLogitsBytes / (vocabulary_ * bytes), 1, kPiece);
}

// Binds a call to buffers, so that ONNX Runtime neither copies nor allocates a state.
Stream::Call Stream::bound(int64_t tokens, std::size_t turn) {
  Call call{Ort::IoBinding(session_), zeros(allocator_, {1, tokens}, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64),
            zeros(allocator_, {1, tokens}, ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL),
            zeros(allocator_, {1, tokens, vocabulary_}, logits_type_)};
  call.binding.BindInput(kIds, call.ids);
  if (has_mask_) {
    std::fill_n(call.mask.GetTensorMutableData<bool>(), tokens, true);
    call.binding.BindInput(kMask, call.mask);
  }
  call.binding.BindOutput(logits_name_.c_str(), call.logits);
  for (const Part& part : parts_) {
    call.binding.BindInput(part.past.c_str(), part.buffers.at(turn));
    call.binding.BindOutput(part.present.c_str(), part.buffers.at(1 - turn));
  }
  return call;
}

std::vector<float> Stream::read(const std::vector<int64_t>& ids) {
  const auto count = static_cast<int64_t>(ids.size());
  if (ids.empty()) {
    throw BadInput("there is no token to read");
  }
  for (const int64_t id : ids) {
    if (id < 0 || id >= vocabulary_) {
      throw BadInput("token " + std::to_string(id) + " is not among the " + std::to_string(vocabulary_) + " of " +
                     name_);
    }
  }
  if (positions_ > 0 && length_ + count > positions_) {
    throw BadInput(std::to_string(length_ + count) + " tokens are more than the " + std::to_string(positions_) +
                   " positions of " + name_);
  }
  if (count == 1) {
    Call& step = steps_.at(turn_);
    run(step, ids.data(), 1);
    return last_logits(step);
  }
  for (int64_t start = 0;; start += piece_) {
    const int64_t tokens = std::min(piece_, count - start);
    Call call = bound(tokens, turn_);
    run(call, ids.data() + start, tokens);
    if (start + tokens == count) {
      return last_logits(call);
    }
  }
}

void Stream::run(Call& call, const int64_t* ids, int64_t count) {
  std::copy_n(ids, count, call.ids.GetTensorMutableData<int64_t>());
  try {
    session_.Run(Ort::RunOptions{}, call.binding);
  } catch (const Ort::Exception& error) {
    throw std::runtime_error("ONNX Runtime cannot run " + name_ + ": " + one_line(error.what()));
  }
  turn_ = 1 - turn_;  // only now, since a call that fails has not advanced the state
  length_ += count;
}

std::vector<float> Stream::last_logits(const Call& call) const {
  const auto count = static_cast<std::size_t>(vocabulary_);
  const bool are_half = logits_type_ == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
  std::vector<float> logits = are_half ? last<Ort::Float16_t>(call.logits, count) : last<float>(call.logits, count);
  if (!std::all_of(logits.begin(), logits.end(), [](float value) { return std::isfinite(value); })) {
    throw std::runtime_error(name_ + " computed logits that are not finite");
  }
  return logits;
}
