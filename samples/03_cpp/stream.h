// A stream of tokens through a language model that `pom-export export --stateful` made, on ONNX Runtime's CPU provider.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

class Stream {
 public:
  // model: the file. op_library: the path of libpom_onnxruntime.so; if it is empty, ONNX Runtime computes the op from
  // the definition in the file, which takes longer.
  //
  // Throws BadInput if the file cannot be loaded, has no state of a constant size, or takes other inputs than ids.
  Stream(const std::string& model, const std::string& op_library);

  // Reads tokens, and returns the logits after the last of them.
  //
  // Throws BadInput, and reads none, if there is no token, one is not in the vocabulary, or the model has no position
  // for it. Throws another exception if ONNX Runtime fails: the state is then the one after length() tokens, since a
  // long prompt is read in pieces.
  std::vector<float> read(const std::vector<int64_t>& ids);

  // The number of different tokens.
  [[nodiscard]] int64_t vocabulary() const { return vocabulary_; }

  // The number of tokens that were read.
  [[nodiscard]] int64_t length() const { return length_; }

 private:
  // A part of the state, as the input for what came before a call and as the output for what follows it. The two
  // buffers change roles with every call.
  struct Part {
    std::string past;
    std::string present;
    std::array<Ort::Value, 2> buffers;
  };

  // A call of some tokens that reads one buffer of each part and writes the other.
  struct Call {
    Ort::IoBinding binding;
    Ort::Value ids;
    Ort::Value mask;
    Ort::Value logits;
  };

  void check_kind();
  void read_inputs();
  void read_outputs();
  void add_part(const std::string& name, Ort::ConstTensorTypeAndShapeInfo info);
  Call bound(int64_t tokens, std::size_t turn);
  void run(Call& call, const int64_t* ids, int64_t count);
  std::vector<float> last_logits(const Call& call) const;

  std::string name_;
  Ort::Env env_;
  Ort::Session session_;
  Ort::AllocatorWithDefaultOptions allocator_;
  std::vector<Part> parts_;
  bool has_mask_ = false;
  std::string logits_name_;
  ONNXTensorElementDataType logits_type_ = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  int64_t piece_ = 0;  // the most tokens in a call
  int64_t vocabulary_ = 0;
  int64_t positions_ = 0;  // the most tokens; 0: no limit
  int64_t length_ = 0;
  std::size_t turn_ = 0;     // which buffer of each part holds the state
  std::vector<Call> steps_;  // calls with one token, for each turn
};
