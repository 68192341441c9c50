// AMX, for bfloat16 tensors; what it cannot multiply, AVX-512 does.
#pragma once

#define XLNET_FAST_ISA amx_bf16
#define XLNET_FAST_TARGET \
  "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16,avx2,fma,f16c"
#define XLNET_FAST_LANES 16
#define XLNET_FAST_TILES 4
#define XLNET_FAST_BF16 1
#define XLNET_FAST_AMX 1
