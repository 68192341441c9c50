#include "isa_avx512.h"
#include "rel_attention_kernels.h"
