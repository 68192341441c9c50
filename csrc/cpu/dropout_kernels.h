// Dropout for the instruction set whose isa_<isa>.h came before.
#pragma once

#include "dropout.h"
#include "isa_begin.h"

#if defined(XLNET_FAST_COMPILES_ISA)
XLNET_FAST_TARGET_BEGIN(XLNET_FAST_TARGET)

#include "dropout_rows.h"

XLNET_FAST_TARGET_END

namespace xlnet_fast::cpu {
using namespace XLNET_FAST_ISA;

const DropoutKernels XLNET_FAST_JOIN_TO(dropout_, XLNET_FAST_ISA) = {
    XLNET_FAST_TEXT_OF(XLNET_FAST_ISA),
    chunks_of,
    run_chunks,
};

}  // namespace xlnet_fast::cpu
#endif
