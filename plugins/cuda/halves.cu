// Both half types in one file: their kernels differ in few instructions, so that compressed together they take a
// quarter less space in the library.
#include "kernels.cuh"

const pom::cuda::Kernels pom::cuda::kFloat16Kernels = kernels_of<__half, 8>();
const pom::cuda::Kernels pom::cuda::kBFloat16Kernels = kernels_of<__nv_bfloat16, 8>();
