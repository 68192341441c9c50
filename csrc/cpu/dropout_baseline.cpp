// The instruction set comes first.
// clang-format off
#include "isa_baseline.h"
#include "dropout_kernels.h"
