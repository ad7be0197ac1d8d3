#include "logger.h"

#include <atomic>
#include <cstdio>
#include <exception>

namespace pom::tensorrt {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept { logger_finder = finder; }

void log_error(const char* op, const char* entry, const char* text) noexcept {
  // Not a std::string, since the failure may be a lack of memory.
  char line[1024];
  std::snprintf(line, sizeof line, "%s: %s: %s", op, entry, text);
  nvinfer1::ILogger* logger = nullptr;
  try {
    nvinfer1::ILoggerFinder* finder = logger_finder;
    logger = finder == nullptr ? nullptr : finder->findLogger();
  } catch (const std::exception&) {
    // Falls back to stderr.
  }
  if (logger != nullptr) {
    logger->log(nvinfer1::ILogger::Severity::kERROR, line);
  } else {
    std::fprintf(stderr, "%s\n", line);
  }
}

}  // namespace pom::tensorrt
