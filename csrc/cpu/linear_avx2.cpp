#include "isa_avx2.h"
#include "linear_kernels.h"
