// Matrix products over small blocks, C (+)= A B, with A and C in plain memory and B in panels.
//
// The inner dimension counts words of 32 bits: one float, or a pair of bfloat16 whose two products
// one instruction adds. A word of A is broadcast, B is read a vector at a time, so B lies in panels
// of kPanel columns: panel by panel, in each word row by word row. The last panel is as many
// vectors wide as its columns need. A may be read in either direction (strides in words).
#pragma once

#include "simd.h"

namespace xlnet_fast::cpu::XLNET_FAST_ISA {
namespace {

constexpr int kTileRows = 6;
constexpr int kTileVectors = XLNET_FAST_TILES;
constexpr int kPanel = kTileVectors * kLanes;
constexpr int64_t kDepthBlock = 64;  // words of a panel kept in the first-level cache

struct FloatWords {
  static constexpr int kElements = 1;
  static constexpr bool kTiles = false;
  static XLNET_FAST_INLINE Vec multiply_add(Vec a, Vec b, Vec c) {
    return XLNET_FAST_ISA::multiply_add(a, b, c);
  }
};

#if defined(XLNET_FAST_BF16)
struct BFloat16Pairs {
  static constexpr int kElements = 2;
  static constexpr bool kTiles = false;
  static XLNET_FAST_INLINE Vec multiply_add(Vec a, Vec b, Vec c) {
    return (Vec)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
  }
};
#endif

#if defined(XLNET_FAST_AMX)
struct BFloat16Tiles : BFloat16Pairs {  // products by AMX where A's words lie side by side
  static constexpr bool kTiles = true;
};
#endif

#if defined(XLNET_FAST_AMX)
using FastestWords = BFloat16Tiles;
#elif defined(XLNET_FAST_BF16)
using FastestWords = BFloat16Pairs;
#else
using FastestWords = FloatWords;
#endif
constexpr bool kMultipliesBFloat16 = FastestWords::kElements == 2;

constexpr int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
constexpr int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

// Words of the panels of a matrix: its columns fill whole vectors.
constexpr int64_t panel_words(int64_t depth, int64_t columns) {
  return depth * round_up(columns, kLanes);
}

// A word as a float, whatever it holds: two bfloat16 are not a float to the compiler.
XLNET_FAST_INLINE float word_at(const float* p) {
  float word;
  __builtin_memcpy(&word, p, 4);
  return word;
}

struct Left {  // A: element (i, k) is at data[i * row + k * word]
  const float* data;
  int64_t row, word;
};

template <class Words, int kRows, int kVectors>
XLNET_FAST_INLINE void accumulate_tile(Vec (&c)[kRows][kVectors], Left a, const float* panel,
                                       int64_t depth, int64_t step = kVectors * kLanes) {
  for (int64_t k = 0; k < depth; ++k) {
    Vec b[kVectors];
    for (int v = 0; v < kVectors; ++v) b[v] = load(panel + v * kLanes);
    for (int i = 0; i < kRows; ++i) {
      const Vec word = splat(word_at(a.data + i * a.row));
      for (int v = 0; v < kVectors; ++v) c[i][v] = Words::multiply_add(word, b[v], c[i][v]);
    }
    a.data += a.word;
    panel += step;
  }
}

// Adds to `out` at the end, not from the beginning: a sum of short sums rounds less.
template <class Words, int kRows, int kVectors>
void plain_tile(Left a, const float* panel, int64_t depth, float* out, int64_t stride, bool add) {
  Vec c[kRows][kVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) c[i][v] = splat(0.0f);
  }
  accumulate_tile<Words>(c, a, panel, depth);
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      float* at = out + i * stride + v * kLanes;
      store(at, add ? load(at) + c[i][v] : c[i][v]);
    }
  }
}

template <class Words, int kRows>
void plain_tile(int vectors, Left a, const float* panel, int64_t depth, float* out, int64_t stride,
                bool add) {
  switch (vectors) {
    case 1:
      return plain_tile<Words, kRows, 1>(a, panel, depth, out, stride, add);
#if XLNET_FAST_TILES > 2
    case 2:
      return plain_tile<Words, kRows, 2>(a, panel, depth, out, stride, add);
    case 3:
      return plain_tile<Words, kRows, 3>(a, panel, depth, out, stride, add);
#endif
    default:
      return plain_tile<Words, kRows, kTileVectors>(a, panel, depth, out, stride, add);
  }
}

struct Right {  // B in panels, from word row `first` of the `depth` that were packed
  const float* data;
  int64_t depth;
  int64_t first = 0;

  const float* panel(int64_t column, int vectors, int64_t k) const {
    return data + column * depth + (first + k) * vectors * kLanes;
  }
};

XLNET_FAST_INLINE int vectors_at(int64_t column, int64_t columns) {
  return static_cast<int>((min_of(kPanel, columns - column) + kLanes - 1) / kLanes);
}

XLNET_FAST_INLINE Left from(Left a, int64_t i, int64_t k) {
  return {a.data + i * a.row + k * a.word, a.row, a.word};
}

// C[i0..i1, columns] (+)= A B over words k0..k1. Whole vectors of C are written: its rows need room
// for them. `columns` are those that were packed, or a multiple of kPanel.
template <class Words>
void multiply_part(Range rows, int64_t columns, Range depth, Left a, Right b, float* c,
                   int64_t stride, bool add) {
  for (int64_t column = 0; column < columns; column += kPanel) {
    const int vectors = vectors_at(column, columns);
    for (int64_t k = depth.begin; k < depth.end; k += kDepthBlock) {
      const int64_t words = min_of(kDepthBlock, depth.end - k);
      const float* panel = b.panel(column, vectors, k);
      const bool add_here = add || k > depth.begin;
      int64_t i = rows.begin;
      for (; i + kTileRows <= rows.end; i += kTileRows) {
        plain_tile<Words, kTileRows>(vectors, from(a, i, k), panel, words, c + i * stride + column,
                                     stride, add_here);
      }
      for (; i < rows.end; ++i) {
        plain_tile<Words, 1>(vectors, from(a, i, k), panel, words, c + i * stride + column, stride,
                             add_here);
      }
    }
  }
}

#if defined(XLNET_FAST_AMX)
}  // namespace
}  // namespace xlnet_fast::cpu::XLNET_FAST_ISA
#include "gemm_amx.h"
namespace xlnet_fast::cpu::XLNET_FAST_ISA {
namespace {
#endif

// The calling thread's tile registers, where there are any, for as long as this lives.
struct TileRegisters {
#if defined(XLNET_FAST_AMX)
  TileRegisters() { configure_tiles(); }
  ~TileRegisters() { release_tiles(); }
#else
  TileRegisters() {}  // not trivial: no warning of an unused variable
#endif
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

// C[rows, columns] (+)= A B over `depth` words; the rest as multiply_part.
template <class Words>
void multiply(int64_t rows, int64_t columns, int64_t depth, Left a, Right b, float* c,
              int64_t stride, bool add) {
#if defined(XLNET_FAST_AMX)
  if (Words::kTiles && a.word == 1 && rows >= kAmxRows && depth >= kAmxWords) {
    const int64_t whole_rows = rows / kAmxRows * kAmxRows, whole = depth / kAmxWords * kAmxWords;
    multiply_amx(whole_rows, columns, whole, a, b, c, stride, add);
    if (whole < depth) {
      multiply_part<Words>({0, whole_rows}, columns, {whole, depth}, a, b, c, stride, true);
    }
    multiply_part<Words>({whole_rows, rows}, columns, {0, depth}, a, b, c, stride, add);
    return;
  }
#endif
  multiply_part<Words>({0, rows}, columns, {0, depth}, a, b, c, stride, add);
}

// Writes A B shifted: row i of the product, less its first shift[i] columns, is row i of C. C has
// `width` columns and room for kPanel more on either side of each row.
template <class Words, int kRows, int kVectors>
void shifted_tile(Left a, const float* panel, int64_t depth, int64_t first_column,
                  const int64_t* shift, int64_t width, float* out, int64_t stride) {
  Vec c[kRows][kVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) c[i][v] = splat(0.0f);
  }
  accumulate_tile<Words>(c, a, panel, depth);
  for (int i = 0; i < kRows; ++i) {
    const int64_t column = first_column - shift[i];
    if (column <= -kPanel || column >= width) continue;
    for (int v = 0; v < kVectors; ++v) store(out + i * stride + column + v * kLanes, c[i][v]);
  }
}

template <class Words, int kRows>
void shifted_tile(int vectors, Left a, const float* panel, int64_t depth, int64_t first_column,
                  const int64_t* shift, int64_t width, float* out, int64_t stride) {
  switch (vectors) {
    case 1:
      return shifted_tile<Words, kRows, 1>(a, panel, depth, first_column, shift, width, out,
                                           stride);
#if XLNET_FAST_TILES > 2
    case 2:
      return shifted_tile<Words, kRows, 2>(a, panel, depth, first_column, shift, width, out,
                                           stride);
    case 3:
      return shifted_tile<Words, kRows, 3>(a, panel, depth, first_column, shift, width, out,
                                           stride);
#endif
    default:
      return shifted_tile<Words, kRows, kTileVectors>(a, panel, depth, first_column, shift, width,
                                                      out, stride);
  }
}

// Whether a row of shift[0..count) has one of the panel's columns among its own.
inline bool touches(const int64_t* shift, int64_t count, int64_t width, int64_t column) {
  for (int64_t i = 0; i < count; ++i) {
    if (shift[i] < column + kPanel && shift[i] + width > column) return true;
  }
  return false;
}

// C[i, j] = (A B)[i, j + shift[i]] for 0 <= j < width. B has `columns` columns.
template <class Words>
void multiply_shifted(int64_t rows, int64_t columns, int64_t depth, Left a, Right b,
                      const int64_t* shift, int64_t width, float* c, int64_t stride) {
  int64_t lowest = shift[0], highest = shift[0];
  for (int64_t i = 1; i < rows; ++i) {
    lowest = min_of(lowest, shift[i]);
    highest = max_of(highest, shift[i]);
  }
  const int64_t end = min_of(columns, highest + width);
  for (int64_t column = lowest / kPanel * kPanel; column < end; column += kPanel) {
    const int vectors = vectors_at(column, columns);
    const float* panel = b.panel(column, vectors, 0);
    int64_t i = 0;
#if defined(XLNET_FAST_AMX)
    for (; Words::kTiles && depth % kAmxWords == 0 && i + kAmxRows <= rows; i += kAmxRows) {
      if (!touches(shift + i, kAmxRows, width, column)) continue;
      shifted_amx(from(a, i, 0), vectors, panel, depth, column, shift + i, width, c + i * stride,
                  stride);
    }
#endif
    for (; i + kTileRows <= rows; i += kTileRows) {
      if (!touches(shift + i, kTileRows, width, column)) continue;
      shifted_tile<Words, kTileRows>(vectors, from(a, i, 0), panel, depth, column, shift + i, width,
                                     c + i * stride, stride);
    }
    for (; i < rows; ++i) {
      if (!touches(shift + i, 1, width, column)) continue;
      shifted_tile<Words, 1>(vectors, from(a, i, 0), panel, depth, column, shift + i, width,
                             c + i * stride, stride);
    }
  }
}

}  // namespace
}  // namespace xlnet_fast::cpu::XLNET_FAST_ISA
