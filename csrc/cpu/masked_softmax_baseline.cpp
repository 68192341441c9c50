#include "isa_baseline.h"
#include "masked_softmax_kernels.h"
