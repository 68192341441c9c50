// Attention over cached keys for the instruction set whose isa_<isa>.h came before.
#pragma once

#include <type_traits>

#include "cached_attention.h"
#include "isa_begin.h"

#if defined(XLNET_FAST_COMPILES_ISA)
XLNET_FAST_TARGET_BEGIN(XLNET_FAST_TARGET)

#include "cached_attention_rows.h"

XLNET_FAST_TARGET_END

namespace xlnet_fast::cpu {
using namespace XLNET_FAST_ISA;

const CachedAttentionKernels XLNET_FAST_JOIN_TO(cached_attention_, XLNET_FAST_ISA) = {
    XLNET_FAST_TEXT_OF(XLNET_FAST_ISA),
    scratch_bytes,
    forward,
};

}  // namespace xlnet_fast::cpu
#endif
