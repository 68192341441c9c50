// Relative attention for AMX, for bfloat16 tensors; what it cannot multiply, AVX-512 does.
#include "isa_begin.h"

#if defined(XLNET_FAST_X86_KERNELS)
XLNET_FAST_TARGET_BEGIN(
    "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16,avx2,fma,f16c")

#define XLNET_FAST_ISA amx_bf16
#define XLNET_FAST_LANES 16
#define XLNET_FAST_TILES 4
#define XLNET_FAST_BF16 1
#define XLNET_FAST_AMX 1
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

const AttentionKernels kAttentionAmxBf16 = {
    "amx_bf16",
    true,
    amx_bf16::forward_bytes<amx_bf16::BFloat16Tiles>,
    amx_bf16::forward_part<amx_bf16::BFloat16Tiles>,
    amx_bf16::backward_bytes<amx_bf16::BFloat16Tiles>,
    amx_bf16::backward_shared_bytes,
    amx_bf16::backward_part<amx_bf16::BFloat16Tiles>,
    amx_bf16::backward_sums,
};

}  // namespace xlnet_fast::cpu
#endif
