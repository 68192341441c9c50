// AVX2 and FMA: eight lanes.
#pragma once

#define XLNET_FAST_ISA avx2
#define XLNET_FAST_TARGET "avx2,fma,f16c"
#define XLNET_FAST_LANES 8
#define XLNET_FAST_TILES 2
