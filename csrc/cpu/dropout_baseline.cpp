#include "dropout_kernels.h"
#include "isa_baseline.h"
