// AVX-512 with products of bfloat16 pairs, for bfloat16 tensors.
#pragma once

#define XLNET_FAST_ISA avx512_bf16
#define XLNET_FAST_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c"
#define XLNET_FAST_LANES 16
#define XLNET_FAST_TILES 4
#define XLNET_FAST_BF16 1
