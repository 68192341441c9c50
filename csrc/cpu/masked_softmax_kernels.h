// Masked softmax for the instruction set whose isa_<isa>.h came before.
#pragma once

#include "isa_begin.h"
#include "masked_softmax.h"

#if defined(XLNET_FAST_COMPILES_ISA)
XLNET_FAST_TARGET_BEGIN(XLNET_FAST_TARGET)

#include "masked_softmax_rows.h"

XLNET_FAST_TARGET_END

namespace xlnet_fast::cpu {
using namespace XLNET_FAST_ISA;

const MaskedSoftmaxKernels XLNET_FAST_JOIN_TO(masked_softmax_, XLNET_FAST_ISA) = {
    XLNET_FAST_TEXT_OF(XLNET_FAST_ISA),
    scratch_bytes,
    forward,
    backward,
};

}  // namespace xlnet_fast::cpu
#endif
