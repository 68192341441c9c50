// Relative attention for the instruction set whose isa_<isa>.h came before.
#pragma once

#include "isa_begin.h"
#include "rel_attention.h"

#if defined(XLNET_FAST_COMPILES_ISA)
XLNET_FAST_TARGET_BEGIN(XLNET_FAST_TARGET)

#include "rel_attention_backward.h"
#include "rel_attention_forward.h"

XLNET_FAST_TARGET_END

namespace xlnet_fast::cpu {
using namespace XLNET_FAST_ISA;

const AttentionKernels XLNET_FAST_JOIN_TO(rel_attention_, XLNET_FAST_ISA) = {
    XLNET_FAST_TEXT_OF(XLNET_FAST_ISA), kMultipliesBFloat16,
    forward_bytes<FastestWords>,        forward_part<FastestWords>,
    backward_bytes<FastestWords>,       backward_shared_bytes,
    backward_part<FastestWords>,        backward_sums,
};

}  // namespace xlnet_fast::cpu
#endif
