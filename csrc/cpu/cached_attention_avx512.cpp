// The instruction set comes first.
// clang-format off
#include "isa_avx512.h"
#include "cached_attention_kernels.h"
