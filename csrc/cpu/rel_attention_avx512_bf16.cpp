// Relative attention for AVX-512 with products of bfloat16 pairs, for bfloat16 tensors.
#include "isa_begin.h"

#if defined(XLNET_FAST_X86_KERNELS)
XLNET_FAST_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")

#define XLNET_FAST_ISA avx512_bf16
#define XLNET_FAST_LANES 16
#define XLNET_FAST_TILES 4
#define XLNET_FAST_BF16 1
#include "simd.h"
//
#include "gemm.h"
//
#include "pack.h"
//
#include "rel_attention_head.h"
//
#include "row_mask.h"
//
#include "rel_attention_scores.h"
//
#include "rel_attention_backward.h"
#include "rel_attention_forward.h"

XLNET_FAST_TARGET_END

namespace xlnet_fast::cpu {

const AttentionKernels kAttentionAvx512Bf16 = {
    "avx512_bf16",
    true,
    avx512_bf16::forward_bytes<avx512_bf16::BFloat16Pairs>,
    avx512_bf16::forward_part<avx512_bf16::BFloat16Pairs>,
    avx512_bf16::backward_bytes<avx512_bf16::BFloat16Pairs>,
    avx512_bf16::backward_shared_bytes,
    avx512_bf16::backward_part<avx512_bf16::BFloat16Pairs>,
    avx512_bf16::backward_sums,
};

}  // namespace xlnet_fast::cpu
#endif
