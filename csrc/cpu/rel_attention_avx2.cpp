// Relative attention for AVX2 and FMA, eight lanes.
#include "isa_begin.h"

#if defined(XLNET_FAST_X86_KERNELS)
XLNET_FAST_TARGET_BEGIN("avx2,fma,f16c")

#define XLNET_FAST_ISA avx2
#define XLNET_FAST_LANES 8
#define XLNET_FAST_TILES 2
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

const AttentionKernels kAttentionAvx2 = {
    "avx2",
    false,
    avx2::forward_bytes<avx2::FloatWords>,
    avx2::forward_part<avx2::FloatWords>,
    avx2::backward_bytes<avx2::FloatWords>,
    avx2::backward_shared_bytes,
    avx2::backward_part<avx2::FloatWords>,
    avx2::backward_sums,
};

}  // namespace xlnet_fast::cpu
#endif
