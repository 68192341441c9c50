#include "isa_baseline.h"
#include "linear_kernels.h"
