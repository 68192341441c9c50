#include "isa_baseline.h"
#include "rel_attention_kernels.h"
