// Linear layers for AVX2 and FMA, eight lanes.
#include "linear.h"
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
//
#include "linear_tiles.h"

XLNET_FAST_TARGET_END

namespace xlnet_fast::cpu {

const LinearKernels kLinearAvx2 = {
    "avx2", false, avx2::kPanel, avx2::LinearScratch::bytes(), avx2::linear_panel<avx2::FloatWords>,
};

}  // namespace xlnet_fast::cpu
#endif
