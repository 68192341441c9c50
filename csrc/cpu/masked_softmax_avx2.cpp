#include "isa_avx2.h"
#include "masked_softmax_kernels.h"
