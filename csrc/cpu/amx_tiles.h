// The eight tile registers of AMX: 16 rows of 64 bytes each. Either the instructions, or, with
// XLNET_FAST_AMX_EMULATED, the same in plain C++, for tests on machines without them.
#pragma once

#if defined(XLNET_FAST_AMX_EMULATED)

namespace xlnet_fast::cpu::XLNET_FAST_ISA {
namespace {

struct EmulatedTiles {
  uint32_t words[8][16][16];
  bool configured;
};
thread_local EmulatedTiles emulated_tiles;

// What an unconfigured or released tile holds is not defined: words that are NaN either way.
inline void fill_tiles(bool configured) {
  for (auto& tile : emulated_tiles.words) {
    for (auto& row : tile) {
      for (uint32_t& word : row) word = 0x7FC07FC0u;
    }
  }
  emulated_tiles.configured = configured;
}

inline void emulated_load(int tile, const void* base, int64_t stride) {
  if (!emulated_tiles.configured) __builtin_trap();
  for (int i = 0; i < 16; ++i) {
    __builtin_memcpy(emulated_tiles.words[tile][i], static_cast<const char*>(base) + i * stride,
                     64);
  }
}

inline void emulated_store(int tile, void* base, int64_t stride) {
  if (!emulated_tiles.configured) __builtin_trap();
  for (int i = 0; i < 16; ++i) {
    __builtin_memcpy(static_cast<char*>(base) + i * stride, emulated_tiles.words[tile][i], 64);
  }
}

inline void emulated_zero(int tile) {
  __builtin_memset(emulated_tiles.words[tile], 0, sizeof emulated_tiles.words[tile]);
}

// C[m][n] += the two products of A[m][k] and B[k][n], pairs of bfloat16, over all k.
inline void emulated_dot(int c, int a, int b) {
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 16; ++n) {
      float sum = word_at(reinterpret_cast<const float*>(&emulated_tiles.words[c][m][n]));
      for (int k = 0; k < 16; ++k) {
        const uint32_t x = emulated_tiles.words[a][m][k], y = emulated_tiles.words[b][k][n];
        const uint32_t parts[] = {x << 16, x & 0xFFFF0000u, y << 16, y & 0xFFFF0000u};
        float values[4];
        __builtin_memcpy(values, parts, sizeof values);
        sum += values[0] * values[2] + values[1] * values[3];
      }
      __builtin_memcpy(&emulated_tiles.words[c][m][n], &sum, 4);
    }
  }
}

inline void settle_memory() {}
inline void configure_tiles() { fill_tiles(true); }
inline void release_tiles() { fill_tiles(false); }

}  // namespace
}  // namespace xlnet_fast::cpu::XLNET_FAST_ISA

#define XLNET_FAST_TILE_LOAD(tile, base, stride) emulated_load(tile, base, stride)
#define XLNET_FAST_TILE_STORE(tile, base, stride) emulated_store(tile, base, stride)
#define XLNET_FAST_TILE_ZERO(tile) emulated_zero(tile)
#define XLNET_FAST_TILE_DOT(c, a, b) emulated_dot(c, a, b)

#else

namespace xlnet_fast::cpu::XLNET_FAST_ISA {
namespace {

// gcc's tile loads do not tell the compiler that they read memory: what was written before must be
// there, what comes after must not move up.
XLNET_FAST_INLINE void settle_memory() { __asm__ volatile("" ::: "memory"); }

// Palette 1: eight tiles of 16 rows of 64 bytes. Holds for the calling thread.
inline void configure_tiles() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  static_assert(sizeof config == 64, "the operand of ldtilecfg");
  __asm__ volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}

inline void release_tiles() { _tile_release(); }

}  // namespace
}  // namespace xlnet_fast::cpu::XLNET_FAST_ISA

// The tile number becomes part of an instruction: a literal.
#define XLNET_FAST_TILE_LOAD(tile, base, stride) _tile_loadd(tile, base, stride)
#define XLNET_FAST_TILE_STORE(tile, base, stride) _tile_stored(tile, base, stride)
#define XLNET_FAST_TILE_ZERO(tile) _tile_zero(tile)
#define XLNET_FAST_TILE_DOT(c, a, b) _tile_dpbf16ps(c, a, b)

#endif
