#include "dropout_kernels.h"
#include "isa_avx2.h"
