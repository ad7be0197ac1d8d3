// What a thread does while it waits for another one.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pom::cpu {

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

}  // namespace pom::cpu
