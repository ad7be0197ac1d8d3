// What CUDA says of a status, as an exception.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace pom::cuda {

inline void throw_if_failed(cudaError_t status) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(cudaGetErrorName(status)) + ": " + cudaGetErrorString(status));
  }
}

}  // namespace pom::cuda
