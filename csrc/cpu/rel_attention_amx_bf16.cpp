#include "isa_amx_bf16.h"
#include "rel_attention_kernels.h"
