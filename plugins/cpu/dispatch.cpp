#include "dispatch.h"

#include <cstdlib>

namespace pom::cpu {
namespace {

struct Candidate {
  const Kernel* kernel;
  bool (*supported)();
};

// Fastest first. The processor's features are checked here, not in a kernel's own file, which the processor may be
// unable to run. The check takes the operating system into account, which has to save the wide registers.
constexpr Candidate kCandidates[] = {
#ifdef POM_CPU_AVX512
    {&kAvx512Kernel,
     [] {
       return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
              __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0;
     }},
#endif
#ifdef POM_CPU_AVX2
    {&kAvx2Kernel,
     [] {
       return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 &&
              __builtin_cpu_supports("f16c") != 0;
     }},
#endif
#ifdef POM_CPU_NEON
    {&kNeonKernel, [] { return true; }},
#endif
    {&kScalarKernel, [] { return true; }},
};

std::string supported_names() {
  std::string names;
  for (const Candidate& candidate : kCandidates) {
    if (candidate.supported()) {
      names += (names.empty() ? "" : ", ") + std::string(candidate.kernel->name);
    }
  }
  return names;
}

}  // namespace

Dispatch dispatch() {
  const char* wanted = std::getenv("POM_CPU_KERNEL");
  const bool any = wanted == nullptr || *wanted == '\0';
  for (const Candidate& candidate : kCandidates) {
    if ((any || wanted == std::string(candidate.kernel->name)) && candidate.supported()) {
      return {candidate.kernel, {}};
    }
  }
  return {nullptr, "POM_CPU_KERNEL must be one of " + supported_names() + " on this machine, got \"" +
                       std::string(any ? "" : wanted) + "\""};
}

}  // namespace pom::cpu
