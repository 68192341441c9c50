// AVX-512: sixteen lanes.
#pragma once

#define XLNET_FAST_ISA avx512
#define XLNET_FAST_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"
#define XLNET_FAST_LANES 16
#define XLNET_FAST_TILES 4
