#include "kernels.cuh"

const pom::cuda::Kernels pom::cuda::kSingleKernels = kernels_of<AnyValue, 1>();
