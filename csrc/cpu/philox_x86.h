// The keep mask of one row for AVX2 and AVX-512, in intrinsics: compilers vectorise the plain loop
// badly.
//
// A 32-bit word sits in the lower half of each 64-bit lane, so one vpmuludq gives both halves of a
// round's product. The low half needs no masking, since vpmuludq ignores upper halves: those hold
// rubbish. Vector "even" carries the counters of groups 0, 2, 4, ... and "odd" of 1, 3, 5, ...; at
// the end the words of "odd" move into the upper halves of "even", which leaves one 32-bit lane per
// group, in order.
#pragma once

#include <immintrin.h>

#include "philox_core.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push  // gcc's own AVX-512 header sets it off (gcc bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define XLNET_FAST_AVX2 __attribute__((target("avx2")))
#define XLNET_FAST_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))

namespace xlnet_fast::cpu {
namespace {

struct Lanes256 {
  __m256i x0, x1, x2, x3;  // 4 lanes of 64 bits
};

XLNET_FAST_AVX2 XLNET_FAST_INLINE Lanes256 philox_avx2(__m256i group, const RowCounter& at) {
  const __m256i m0 = _mm256_set1_epi64x(kMultiplier0), m1 = _mm256_set1_epi64x(kMultiplier1);
  Lanes256 c{group, _mm256_set1_epi64x(at.row), _mm256_set1_epi64x(at.head_flat),
             _mm256_setzero_si256()};
  uint32_t k0 = at.key0, k1 = at.key1;
#pragma GCC unroll 10
  for (int round = 0; round < kRounds; ++round) {
    const __m256i product0 = _mm256_mul_epu32(c.x0, m0), product1 = _mm256_mul_epu32(c.x2, m1);
    const __m256i keyed1 = _mm256_xor_si256(c.x1, _mm256_set1_epi64x(k0));
    const __m256i keyed3 = _mm256_xor_si256(c.x3, _mm256_set1_epi64x(k1));
    c = {_mm256_xor_si256(_mm256_srli_epi64(product1, 32), keyed1), product1,
         _mm256_xor_si256(_mm256_srli_epi64(product0, 32), keyed3), product0};
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
  return c;
}

// In each 32-bit lane, `bit` where the word (even's, then odd's) is kept.
XLNET_FAST_AVX2 XLNET_FAST_INLINE __m256i kept_avx2(__m256i even, __m256i odd, __m256i threshold,
                                                    int bit) {
  const __m256i word = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0b10101010);
  const __m256i kept = _mm256_cmpeq_epi32(_mm256_max_epu32(word, threshold), word);
  return _mm256_and_si256(kept, _mm256_set1_epi32(bit));
}

XLNET_FAST_AVX2 void keep_row_avx2(uint8_t* keep, int64_t keys, const RowCounter& at) {
  constexpr int64_t kGroups = 8;  // 32 bytes of mask
  const __m256i threshold = _mm256_set1_epi32(static_cast<int>(at.threshold));
  const int64_t blocks = keys / (4 * kGroups);
  const __m256i first = _mm256_set1_epi64x(at.group);
  __m256i even = _mm256_add_epi64(first, _mm256_setr_epi64x(0, 2, 4, 6));
  __m256i odd = _mm256_add_epi64(first, _mm256_setr_epi64x(1, 3, 5, 7));
  for (int64_t block = 0; block < blocks; ++block) {
    const Lanes256 a = philox_avx2(even, at), b = philox_avx2(odd, at);
    const __m256i low = _mm256_or_si256(kept_avx2(a.x0, b.x0, threshold, 1),
                                        kept_avx2(a.x1, b.x1, threshold, 1 << 8));
    const __m256i high = _mm256_or_si256(kept_avx2(a.x2, b.x2, threshold, 1 << 16),
                                         kept_avx2(a.x3, b.x3, threshold, 1 << 24));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(keep + 4 * kGroups * block),
                        _mm256_or_si256(low, high));
    even = _mm256_add_epi64(even, _mm256_set1_epi64x(kGroups));
    odd = _mm256_add_epi64(odd, _mm256_set1_epi64x(kGroups));
  }
  keep_row_from(keep, kGroups * blocks, keys, at);
}

struct Lanes512 {
  __m512i x0, x1, x2, x3;  // 8 lanes of 64 bits
};

XLNET_FAST_AVX512 XLNET_FAST_INLINE Lanes512 philox_avx512(__m512i group, const RowCounter& at) {
  const __m512i m0 = _mm512_set1_epi64(kMultiplier0), m1 = _mm512_set1_epi64(kMultiplier1);
  constexpr int kXor3 = 0x96;  // vpternlog: the exclusive or of its three operands
  Lanes512 c{group, _mm512_set1_epi64(at.row), _mm512_set1_epi64(at.head_flat),
             _mm512_setzero_si512()};
  uint32_t k0 = at.key0, k1 = at.key1;
#pragma GCC unroll 10
  for (int round = 0; round < kRounds; ++round) {
    const __m512i product0 = _mm512_mul_epu32(c.x0, m0), product1 = _mm512_mul_epu32(c.x2, m1);
    c = {_mm512_ternarylogic_epi64(_mm512_srli_epi64(product1, 32), c.x1, _mm512_set1_epi64(k0),
                                   kXor3),
         product1,
         _mm512_ternarylogic_epi64(_mm512_srli_epi64(product0, 32), c.x3, _mm512_set1_epi64(k1),
                                   kXor3),
         product0};
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
  return c;
}

// In each 32-bit lane, `bit` where the word (even's, then odd's) is kept.
XLNET_FAST_AVX512 XLNET_FAST_INLINE __m512i kept_avx512(__m512i even, __m512i odd,
                                                        __m512i threshold, int bit) {
  const __m512i word = _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
  return _mm512_maskz_set1_epi32(_mm512_cmpge_epu32_mask(word, threshold), bit);
}

XLNET_FAST_AVX512 void keep_row_avx512(uint8_t* keep, int64_t keys, const RowCounter& at) {
  constexpr int64_t kGroups = 16;  // 64 bytes of mask
  const __m512i threshold = _mm512_set1_epi32(static_cast<int>(at.threshold));
  const int64_t blocks = keys / (4 * kGroups);
  const __m512i first = _mm512_set1_epi64(at.group);
  __m512i even = _mm512_add_epi64(first, _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14));
  __m512i odd = _mm512_add_epi64(first, _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15));
  for (int64_t block = 0; block < blocks; ++block) {
    const Lanes512 a = philox_avx512(even, at), b = philox_avx512(odd, at);
    const __m512i low = _mm512_or_si512(kept_avx512(a.x0, b.x0, threshold, 1),
                                        kept_avx512(a.x1, b.x1, threshold, 1 << 8));
    const __m512i high = _mm512_or_si512(kept_avx512(a.x2, b.x2, threshold, 1 << 16),
                                         kept_avx512(a.x3, b.x3, threshold, 1 << 24));
    _mm512_storeu_si512(keep + 4 * kGroups * block, _mm512_or_si512(low, high));
    even = _mm512_add_epi64(even, _mm512_set1_epi64(kGroups));
    odd = _mm512_add_epi64(odd, _mm512_set1_epi64(kGroups));
  }
  keep_row_from(keep, kGroups * blocks, keys, at);
}

}  // namespace
}  // namespace xlnet_fast::cpu

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
