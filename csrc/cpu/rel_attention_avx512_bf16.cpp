#include "isa_avx512_bf16.h"
#include "rel_attention_kernels.h"
