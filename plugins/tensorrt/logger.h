// TensorRT's own logger, obtained from the finder that TensorRT passes when it loads this library.
#pragma once

#include <NvInferRuntime.h>

namespace pom::tensorrt {

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

// Logs one line "OP: ENTRY: TEXT" as an error. It goes to stderr if the finder finds no logger, as in TensorRT for RTX
// 1.7, which would otherwise report "could not create the plugin" without a reason.
void log_error(const char* op, const char* entry, const char* text) noexcept;

}  // namespace pom::tensorrt
