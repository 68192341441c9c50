// Linear layers for any CPU that gcc or clang compiles for, four lanes.
#include "linear.h"
//
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
#include "row_io.h"
//
#include "linear_tiles.h"

namespace xlnet_fast::cpu {

const LinearKernels kLinearBaseline = {
    "baseline",
    false,
    baseline::kPanel,
    baseline::LinearScratch::bytes(),
    baseline::linear_panel<baseline::FloatWords>,
};

}  // namespace xlnet_fast::cpu
#endif
