// Linear layers for the instruction set whose isa_<isa>.h came before.
#pragma once

#include "isa_begin.h"
#include "linear.h"

#if defined(XLNET_FAST_COMPILES_ISA)
XLNET_FAST_TARGET_BEGIN(XLNET_FAST_TARGET)

#include "linear_tiles.h"

XLNET_FAST_TARGET_END

namespace xlnet_fast::cpu {
using namespace XLNET_FAST_ISA;

const LinearKernels XLNET_FAST_JOIN_TO(linear_, XLNET_FAST_ISA) = {
    XLNET_FAST_TEXT_OF(XLNET_FAST_ISA), kMultipliesBFloat16, kPanel, LinearScratch::bytes(),
    linear_columns<FastestWords>,
};

}  // namespace xlnet_fast::cpu
#endif
