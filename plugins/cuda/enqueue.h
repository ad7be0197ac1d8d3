// A call for adapters whose callers handle exceptions: the plugin and the C interface.
#pragma once

#include <cuda_runtime_api.h>

#include "pom/call.h"

namespace pom::cuda {

// Calls aggregate() with these inputs and outputs, see bind(). Throws std::invalid_argument for a required pointer that
// is null, a misaligned workspace, sizes that the kernels cannot count, and a present that overwrites its past; and
// std::runtime_error with CUDA's description of a failed status.
void enqueue(const OpCall& call, const void* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream);

}  // namespace pom::cuda
