// Linear layers for AVX-512, sixteen lanes.
#include "linear.h"
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
//
#include "linear_tiles.h"

XLNET_FAST_TARGET_END

namespace xlnet_fast::cpu {

const LinearKernels kLinearAvx512 = {
    "avx512",
    false,
    avx512::kPanel,
    avx512::LinearScratch::bytes(),
    avx512::linear_panel<avx512::FloatWords>,
};

}  // namespace xlnet_fast::cpu
#endif
