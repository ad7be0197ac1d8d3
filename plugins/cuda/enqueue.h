// One call for those whose callers understand exceptions: the plugin and the C interface.
#pragma once

#include <cuda_runtime_api.h>

#include "pom/call.h"

namespace pom::cuda {

// aggregate() of these inputs and outputs, see bind(). Throws std::invalid_argument for a pointer that the call needs
// and that is null, for a workspace off its alignment, for sizes that the kernels do not count and for a present over
// its past, and std::runtime_error with what CUDA says of a status.
void enqueue(const OpCall& call, const void* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream);

}  // namespace pom::cuda
