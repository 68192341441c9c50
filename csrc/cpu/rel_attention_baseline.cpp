// Relative attention for any CPU that gcc or clang compiles for, four lanes.
#include "isa_begin.h"

#if defined(XLNET_FAST_VECTOR_KERNELS)
#define XLNET_FAST_ISA baseline
#define XLNET_FAST_LANES 4
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

namespace xlnet_fast::cpu {

const AttentionKernels kAttentionBaseline = {
    "baseline",
    false,
    baseline::forward_bytes<baseline::FloatWords>,
    baseline::forward_part<baseline::FloatWords>,
    baseline::backward_bytes<baseline::FloatWords>,
    baseline::backward_shared_bytes,
    baseline::backward_part<baseline::FloatWords>,
    baseline::backward_sums,
};

}  // namespace xlnet_fast::cpu
#endif
