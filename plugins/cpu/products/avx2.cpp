// x86-64 with AVX2, FMA and F16C. Compiled with those flags: include nothing that emits inline functions (kernel.h).
#include "avx2.h"

namespace pom::cpu {
namespace {

struct Avx2Products : Avx2Integers {
  static constexpr int kRows = 2;
  static constexpr int kChains = 1;
  static constexpr bool kSigned = true;

  // Products of two inputs are added to 16 bits; 8 such sums fit, since a weight is at most 15 and an activation 127.
  template <int kStepRows, int kVectors>
  POM_ALWAYS_INLINE static void step(const uint8_t* weights, int64_t tile_bytes, const int8_t* values, int64_t stride,
                                     Sums<Avx2Products, kStepRows, kVectors>* sums) {
#pragma GCC unroll 16
    for (int vector = 0; vector < kVectors; ++vector) {
      Bytes bytes[kStepParts];
#pragma GCC unroll 4
      for (int part = 0; part < kStepParts; ++part) {
        bytes[part] = step_part<Avx2Products>(weights + vector_offset<Avx2Products>(vector, tile_bytes, 4), part);
      }
#pragma GCC unroll 16
      for (int row = 0; row < kStepRows; ++row) {
        const int8_t* const from = values + row * stride;
        __m256i pairs = _mm256_maddubs_epi16(bytes[0], inputs(from));
#pragma GCC unroll 4
        for (int part = 1; part < kStepParts; ++part) {
          pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(bytes[part], inputs(from + part * 4)));
        }
        Sum& sum = sums->chains[0][row][vector];
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
      }
    }
  }

  // One factor of the instruction has no sign, which the other one takes over. Two products fit into 16 bits:
  // 2 * 128 * 127.
  template <int kStepRows, int kVectors>
  POM_ALWAYS_INLINE static void step8(const uint8_t* weights, int64_t tile_bytes, const int8_t* values, int64_t stride,
                                      Sums<Avx2Products, kStepRows, kVectors>* sums) {
#pragma GCC unroll 4
    for (int part = 0; part < kStepParts; ++part) {
#pragma GCC unroll 16
      for (int vector = 0; vector < kVectors; ++vector) {
        const uint8_t* const at = weights + vector_offset<Avx2Products>(vector, tile_bytes, 4) + part * kChunkBytes;
        const __m256i bytes = _mm256_xor_si256(load(at), _mm256_set1_epi8(INT8_MIN));
        const __m256i magnitudes = _mm256_abs_epi8(bytes);
#pragma GCC unroll 16
        for (int row = 0; row < kStepRows; ++row) {
          const __m256i factors = _mm256_sign_epi8(inputs(values + row * stride + part * 4), bytes);
          const __m256i pairs = _mm256_maddubs_epi16(magnitudes, factors);
          Sum& sum = sums->chains[0][row][vector];
          sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        }
      }
    }
  }
};

}  // namespace

constexpr ProductKernel kAvx2Products = products_of<Avx2Products>("avx2");

}  // namespace pom::cpu
