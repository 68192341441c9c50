#include "isa_avx512.h"
#include "linear_kernels.h"
