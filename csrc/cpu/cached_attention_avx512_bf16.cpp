// The instruction set comes first.
// clang-format off
#include "isa_avx512_bf16.h"
#include "cached_attention_kernels.h"
