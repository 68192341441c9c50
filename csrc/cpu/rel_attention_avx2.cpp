#include "isa_avx2.h"
#include "rel_attention_kernels.h"
