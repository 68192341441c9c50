#include "isa_avx512_bf16.h"
#include "linear_kernels.h"
