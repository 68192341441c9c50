// Linear layers for AVX-512 with products of bfloat16 pairs, for bfloat16 tensors.
#include "linear.h"
//
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
#include "row_io.h"
//
#include "linear_tiles.h"

XLNET_FAST_TARGET_END

namespace xlnet_fast::cpu {

const LinearKernels kLinearAvx512Bf16 = {
    "avx512_bf16",
    true,
    avx512_bf16::kPanel,
    avx512_bf16::LinearScratch::bytes(),
    avx512_bf16::linear_panel<avx512_bf16::BFloat16Pairs>,
};

}  // namespace xlnet_fast::cpu
#endif
