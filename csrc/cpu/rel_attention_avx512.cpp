// Relative attention for AVX-512, sixteen lanes.
#include "isa_begin.h"

#if defined(XLNET_FAST_X86_KERNELS)
XLNET_FAST_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")

#define XLNET_FAST_ISA avx512
#define XLNET_FAST_LANES 16
#define XLNET_FAST_TILES 4
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

const AttentionKernels kAttentionAvx512 = {
    "avx512",
    false,
    avx512::forward_bytes<avx512::FloatWords>,
    avx512::forward_part<avx512::FloatWords>,
    avx512::backward_bytes<avx512::FloatWords>,
    avx512::backward_shared_bytes,
    avx512::backward_part<avx512::FloatWords>,
    avx512::backward_sums,
};

}  // namespace xlnet_fast::cpu
#endif
