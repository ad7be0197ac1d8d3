// TensorRT's entries are noexcept: an exception that left one would end the process.
#pragma once

#include <exception>
#include <utility>

#include "logger.h"

namespace pom::tensorrt {

// The result of `body`, or `failure` and one logged line where it throws.
template <typename Result, typename Body>
Result guarded(const char* op, const char* entry, Result failure, Body&& body) noexcept {
  try {
    return std::forward<Body>(body)();
  } catch (const std::exception& error) {
    log_error(op, entry, error.what());
  } catch (...) {
    log_error(op, entry, "unknown error");
  }
  return failure;
}

}  // namespace pom::tensorrt
