#include "kernels.cuh"

const pom::cuda::Kernels pom::cuda::kFloat32Kernels = kernels_of<float, 4>();
