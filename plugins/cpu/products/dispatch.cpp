#include "products.h"

#ifdef POM_CPU_NEON
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace pom::cpu {
namespace {

struct Candidate {
  const ProductKernel* products;
  const Kernel* kernel;  // the products are for this kernel, and for faster ones that have none of their own
  bool (*supported)();
};

// Fastest first. As in ../dispatch.cpp, the processor's features are checked here.
constexpr Candidate kCandidates[] = {
#ifdef POM_CPU_AVX512
    {&kAvx512VnniProducts, &kAvx512Kernel,
     [] {
       return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
              __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0 &&
              __builtin_cpu_supports("avx512vnni") != 0;
     }},
#endif
#ifdef POM_CPU_AVX2
    {&kAvxVnniProducts, &kAvx2Kernel,
     [] {
       return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 &&
              __builtin_cpu_supports("f16c") != 0 && __builtin_cpu_supports("avxvnni") != 0;
     }},
    {&kAvx2Products, &kAvx2Kernel,
     [] {
       return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 &&
              __builtin_cpu_supports("f16c") != 0;
     }},
#endif
#ifdef POM_CPU_NEON
    {&kNeonDotProducts, &kNeonKernel, [] { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }},
    {&kNeonProducts, &kNeonKernel, [] { return true; }},
#endif
    {&kScalarProducts, &kScalarKernel, [] { return true; }},
};

}  // namespace

const ProductKernel& product_kernel(const Kernel& kernel) {
  bool allowed = false;
  for (const Candidate& candidate : kCandidates) {
    allowed = allowed || candidate.kernel == &kernel;
    if (allowed && candidate.supported()) {
      return *candidate.products;
    }
  }
  return kScalarProducts;
}

const ProductKernel* runnable_product_kernel(int index) {
  for (const Candidate& candidate : kCandidates) {
    if (candidate.supported() && index-- == 0) {
      return candidate.products;
    }
  }
  return nullptr;
}

}  // namespace pom::cpu
