// The instruction set comes first.
// clang-format off
#include "isa_baseline.h"
#include "cached_attention_kernels.h"
