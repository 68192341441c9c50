// Masked softmax for any CPU that gcc or clang compiles for, four lanes.
#include "masked_softmax.h"
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
#include "row_mask.h"
//
#include "masked_softmax_rows.h"

namespace xlnet_fast::cpu {

const MaskedSoftmaxKernels kSoftmaxBaseline = {
    "baseline",
    baseline::scratch_bytes,
    baseline::forward,
    baseline::backward,
};

}  // namespace xlnet_fast::cpu
#endif
