// TensorRT's own logger, found through the finder that it hands over when it loads this library.
#pragma once

#include <NvInferRuntime.h>

namespace pom::tensorrt {

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

// One line "OP: ENTRY: TEXT" as an error. It goes to stderr where the finder finds no logger, as in
// TensorRT for RTX 1.7, which would leave "could not create the plugin" without a reason.
void log_error(const char* op, const char* entry, const char* text) noexcept;

}  // namespace pom::tensorrt
