// TensorRT's entry points are noexcept: an exception that left one would terminate the process.
#pragma once

#include <exception>
#include <utility>

#include "logger.h"

namespace pom::tensorrt {

// Returns the result of `body`; if it throws, logs one line and returns `failure`.
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
