#include "isa_amx_emulated.h"
#include "rel_attention_kernels.h"
