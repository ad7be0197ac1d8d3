#include "logger.h"

#include <atomic>
#include <cstdio>
#include <exception>

namespace pom::tensorrt {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept { logger_finder = finder; }

void log_error(Op op, const std::string& text) noexcept {
  try {
    const std::string line = std::string(name_of(op)) + ": " + text;
    nvinfer1::ILoggerFinder* finder = logger_finder;
    nvinfer1::ILogger* logger = finder == nullptr ? nullptr : finder->findLogger();
    if (logger != nullptr) {
      logger->log(nvinfer1::ILogger::Severity::kERROR, line.c_str());
    } else {
      std::fprintf(stderr, "%s\n", line.c_str());
    }
  } catch (const std::exception&) {
    // Out of memory while reporting: the caller's status still says that something failed.
  }
}

}  // namespace pom::tensorrt
