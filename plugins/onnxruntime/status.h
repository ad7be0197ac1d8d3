// The boundary between our exceptions and ONNX Runtime's C interface.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <exception>
#include <stdexcept>
#include <string>

#include "pom/contract.h"

namespace pom::onnxruntime {

// A mistake in the model or in a call's inputs.
class InvalidNode : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// Takes the error text of pom::validate or a similar function, which is empty on success.
inline void throw_if(const std::string& error) {
  if (!error.empty()) {
    throw InvalidNode(error);
  }
}

// Runs a function and turns whatever it throws into a status, for ONNX Runtime to release; null on success.
template <typename Function>
OrtStatus* status_of(const OrtApi& api, const char* op, const Function& function) noexcept {
  try {
    function();
    return nullptr;
  } catch (const InvalidNode& error) {
    const std::string message = std::string(kDomain) + "::" + op + ": " + error.what();
    return api.CreateStatus(ORT_INVALID_ARGUMENT, message.c_str());
  } catch (const std::exception& error) {
    return api.CreateStatus(ORT_FAIL, error.what());
  } catch (...) {
    return api.CreateStatus(ORT_FAIL, "pom: unknown error");
  }
}

}  // namespace pom::onnxruntime
