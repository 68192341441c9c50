#include "isa_avx512.h"
#include "masked_softmax_kernels.h"
