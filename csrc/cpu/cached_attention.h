// Relative attention of a few query rows over cached keys on the CPU: the entry and the table of
// kernels behind it. The kernels are in cached_attention_{scores,rows}.h, compiled once for each
// instruction set by cached_attention_<isa>.cpp.
#pragma once

#include <string>

#include "../params.h"
#include "rel_attention.h"

namespace xlnet_fast::cpu {

// The kernels of one instruction set. Pairs of a head and a batch element count as n * B + b: the
// elements of a head follow one another, and find its part of the table in the caches.
struct CachedAttentionKernels {
  const char* isa;
  int64_t (*scratch_bytes)(const CachedAttentionParams&);  // that a thread needs, 64-byte aligned
  void (*forward)(const CachedAttentionParams&, Range pairs, char* scratch);
};

#if defined(XLNET_FAST_VECTOR_KERNELS)
extern const CachedAttentionKernels cached_attention_baseline;
#endif
#if defined(XLNET_FAST_X86_KERNELS)
extern const CachedAttentionKernels cached_attention_avx2, cached_attention_avx512,
    cached_attention_avx512_bf16;
#endif

// Fills params.out; the same bits on any number of threads. Pairs whose row of the table there is
// not take the nearest one: who calls has seen to it that they are hidden.
// Throws std::invalid_argument for sizes, a dtype or an `isa` that cannot be used.
void cached_attention(const CachedAttentionParams& params, int threads, const std::string& isa);

}  // namespace xlnet_fast::cpu
