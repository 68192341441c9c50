#include "dropout_kernels.h"
#include "isa_avx512.h"
