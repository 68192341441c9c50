// What kernels compiled for one instruction set include, ahead of the pragma that switches the
// target: a standard header after it would have its inline functions compiled for that target too,
// and the linker might take those for the whole library.
//
// Ahead of this comes isa_<isa>.h, which defines
//   XLNET_FAST_ISA     its name, and the namespace of all that is compiled for it
//   XLNET_FAST_TARGET  what the compiler calls it; not defined for the compiler's own target
//   XLNET_FAST_LANES   fp32 lanes of a vector: 4, 8 or 16
//   XLNET_FAST_TILES   vectors of a row of a register tile
//   XLNET_FAST_BF16    defined where pairs of bfloat16 are multiplied by one instruction
//   XLNET_FAST_AMX     defined where tiles of them are; with XLNET_FAST_AMX_EMULATED, in plain C++
#pragma once

#include <cstddef>
#include <cstdint>

#include "../params.h"
#include "philox_core.h"
#include "rel_attention.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc's AVX-512 header (gcc bug 105593)
#endif

#if defined(XLNET_FAST_TARGET) ? defined(XLNET_FAST_X86_KERNELS) \
                               : defined(XLNET_FAST_VECTOR_KERNELS)
#define XLNET_FAST_COMPILES_ISA 1
#endif

#define XLNET_FAST_TEXT(word) #word
#define XLNET_FAST_TEXT_OF(macro) XLNET_FAST_TEXT(macro)
#define XLNET_FAST_JOIN(prefix, word) prefix##word
#define XLNET_FAST_JOIN_TO(prefix, macro) XLNET_FAST_JOIN(prefix, macro)
#define XLNET_FAST_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define XLNET_FAST_UNROLL(count) _Pragma("unroll")
#else
#define XLNET_FAST_UNROLL(count) XLNET_FAST_PRAGMA(GCC unroll count)
#endif
#if !defined(XLNET_FAST_TARGET)
#define XLNET_FAST_TARGET_BEGIN(isa)
#define XLNET_FAST_TARGET_END
#elif defined(__clang__)
#define XLNET_FAST_TARGET_BEGIN(isa) \
  XLNET_FAST_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define XLNET_FAST_TARGET_END XLNET_FAST_PRAGMA(clang attribute pop)
#else
#define XLNET_FAST_TARGET_BEGIN(isa) \
  XLNET_FAST_PRAGMA(GCC push_options) XLNET_FAST_PRAGMA(GCC target(isa))
#define XLNET_FAST_TARGET_END XLNET_FAST_PRAGMA(GCC pop_options)
#endif
