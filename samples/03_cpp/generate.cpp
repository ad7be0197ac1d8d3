// Continues a text with a language model that `pom-export export --stateful` made, on the CPU and without Python. Each
// token is the likeliest one.
//
//   generate [--ids] MODEL PROMPT TOKENS [OP_LIBRARY]
//   printf 'The with statement' | generate stream.onnx /dev/stdin 100 libpom_onnxruntime.so
//
// PROMPT is a file whose bytes are the tokens; the continuation goes to stdout as bytes, TOKENS of them. With --ids,
// for models with a tokenizer, PROMPT has ids, separated by spaces or lines, and so has the continuation. OP_LIBRARY is
// what pom_export.custom_ops_library() returns; without it, ONNX Runtime computes the op from the definition in the
// file.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <iostream>
#include <iterator>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "program.h"
#include "stream.h"

namespace {

constexpr int64_t kBytes = 256;

// Without this, a library older than the headers would crash.
void initialize_onnxruntime() {
  const OrtApi* api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (api == nullptr) {
    throw std::runtime_error("compiled with the headers of ONNX Runtime 1." + std::to_string(ORT_API_VERSION) +
                             ", but the library is the older " + OrtGetApiBase()->GetVersionString());
  }
  Ort::InitApi(api);
}

std::vector<int64_t> read_prompt(const std::string& path, bool are_ids) {
  const std::vector<char> file = read_file(path);
  std::vector<int64_t> ids;
  if (!are_ids) {
    std::transform(file.begin(), file.end(), std::back_inserter(ids),
                   [](char byte) { return static_cast<unsigned char>(byte); });
  } else {
    std::istringstream words(std::string(file.begin(), file.end()));
    for (std::string word; words >> word;) {
      const std::optional<int64_t> id = whole_number(word);
      if (!id) {
        throw BadInput(path + " has " + word + ", which is no id");
      }
      ids.push_back(*id);
    }
  }
  if (ids.empty()) {
    throw BadInput(path + " is empty: a text needs a beginning");
  }
  return ids;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void write_token(int64_t id, bool are_ids) {
  if (are_ids) {
    std::cout << id << '\n';
  } else {
    std::cout << static_cast<char>(id);
  }
  if (!std::cout.flush()) {
    throw std::runtime_error("cannot write the text to stdout");
  }
}

void generate(const std::string& model, const std::string& prompt, int64_t tokens, const std::string& op_library,
              bool are_ids) {
  const std::vector<int64_t> ids = read_prompt(prompt, are_ids);
  Stream stream(model, op_library);
  if (!are_ids && stream.vocabulary() != kBytes) {
    throw BadInput(model + " has " + std::to_string(stream.vocabulary()) + " tokens, which are no bytes: use --ids");
  }
  auto start = std::chrono::steady_clock::now();
  std::vector<float> logits = stream.read(ids);
  std::cerr << "prompt: " << ids.size() << " tokens, " << 1e3 * seconds_since(start) << " ms\n";
  start = std::chrono::steady_clock::now();
  for (int64_t count = 0; count < tokens; ++count) {
    const int64_t next = std::max_element(logits.begin(), logits.end()) - logits.begin();
    write_token(next, are_ids);
    if (count + 1 < tokens) {
      logits = stream.read({next});
    }
  }
  if (tokens > 1) {
    std::cerr << "text: " << tokens << " tokens, " << static_cast<double>(tokens - 1) / seconds_since(start)
              << " a second\n";
  }
}

}  // namespace

int main(int count, char** arguments) {
  return run_program(count, arguments, [](std::vector<std::string> given) {
    const bool are_ids = !given.empty() && given.front() == "--ids";
    if (are_ids) {
      given.erase(given.begin());
    }
    if (given.size() < 3 || given.size() > 4) {
      throw BadInput("usage: generate [--ids] MODEL PROMPT TOKENS [OP_LIBRARY]");
    }
    const std::optional<int64_t> tokens = whole_number(given[2]);
    if (!tokens || *tokens == 0) {
      throw BadInput(given[2] + " is no number of tokens, such as 100");
    }
    initialize_onnxruntime();
    generate(given[0], given[1], *tokens, given.size() > 3 ? given[3] : "", are_ids);
  });
}
