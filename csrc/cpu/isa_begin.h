// What kernels compiled for one instruction set include, ahead of the pragma that switches the
// target: a standard header after it would have its inline functions compiled for that target too,
// and the linker might take those for the whole library.
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

#define XLNET_FAST_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define XLNET_FAST_UNROLL(count) _Pragma("unroll")
#else
#define XLNET_FAST_UNROLL(count) XLNET_FAST_PRAGMA(GCC unroll count)
#endif
#if defined(__clang__)
#define XLNET_FAST_TARGET_BEGIN(isa) \
  XLNET_FAST_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define XLNET_FAST_TARGET_END XLNET_FAST_PRAGMA(clang attribute pop)
#else
#define XLNET_FAST_TARGET_BEGIN(isa) \
  XLNET_FAST_PRAGMA(GCC push_options) XLNET_FAST_PRAGMA(GCC target(isa))
#define XLNET_FAST_TARGET_END XLNET_FAST_PRAGMA(GCC pop_options)
#endif
