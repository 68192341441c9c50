// Any CPU that gcc or clang compiles for: four lanes.
#pragma once

#define XLNET_FAST_ISA baseline
#define XLNET_FAST_LANES 4
#define XLNET_FAST_TILES 2
