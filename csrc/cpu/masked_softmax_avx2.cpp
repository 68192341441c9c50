// Masked softmax for AVX2 and FMA, eight lanes.
#include "masked_softmax.h"
//
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
#include "row_io.h"
#include "row_mask.h"
//
#include "masked_softmax_rows.h"

XLNET_FAST_TARGET_END

namespace xlnet_fast::cpu {

const MaskedSoftmaxKernels kSoftmaxAvx2 = {
    "avx2",
    avx2::scratch_bytes,
    avx2::forward,
    avx2::backward,
};

}  // namespace xlnet_fast::cpu
#endif
