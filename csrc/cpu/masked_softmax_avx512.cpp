// Masked softmax for AVX-512, sixteen lanes.
#include "masked_softmax.h"
//
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
#include "row_io.h"
#include "row_mask.h"
//
#include "masked_softmax_rows.h"

XLNET_FAST_TARGET_END

namespace xlnet_fast::cpu {

const MaskedSoftmaxKernels kSoftmaxAvx512 = {
    "avx512",
    avx512::scratch_bytes,
    avx512::forward,
    avx512::backward,
};

}  // namespace xlnet_fast::cpu
#endif
