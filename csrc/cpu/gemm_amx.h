// The products of gemm.h by AMX: a panel's words are already as its tiles want them, 16 word rows
// of 16 columns. Two blocks of 16 rows by two of 16 columns at a time: four tiles of C, four loads
// for four products.
#pragma once

#include "amx_tiles.h"

namespace xlnet_fast::cpu::XLNET_FAST_ISA {
namespace {

constexpr int64_t kAmxRows = 16, kAmxWords = 16;

// out[32, 32] = A B, or its first 16 rows, or its first 16 columns. `width`: words of a panel's
// row.
XLNET_FAST_INLINE void amx_block(bool two_rows, bool two_columns, Left a, const float* panel,
                                 int64_t width, int64_t depth, float* out, int64_t stride) {
  settle_memory();
  const int64_t a_bytes = 4 * a.row, b_bytes = 4 * width, c_bytes = 4 * stride;
  XLNET_FAST_TILE_ZERO(0);
  XLNET_FAST_TILE_ZERO(1);
  XLNET_FAST_TILE_ZERO(2);
  XLNET_FAST_TILE_ZERO(3);
  for (int64_t k = 0; k < depth; k += kAmxWords) {
    XLNET_FAST_TILE_LOAD(4, a.data + k, a_bytes);
    XLNET_FAST_TILE_LOAD(6, panel + k * width, b_bytes);
    XLNET_FAST_TILE_DOT(0, 4, 6);
    if (two_columns) {
      XLNET_FAST_TILE_LOAD(7, panel + k * width + kLanes, b_bytes);
      XLNET_FAST_TILE_DOT(1, 4, 7);
    }
    if (two_rows) {
      XLNET_FAST_TILE_LOAD(5, a.data + kAmxRows * a.row + k, a_bytes);
      XLNET_FAST_TILE_DOT(2, 5, 6);
      if (two_columns) XLNET_FAST_TILE_DOT(3, 5, 7);
    }
  }
  XLNET_FAST_TILE_STORE(0, out, c_bytes);
  if (two_columns) XLNET_FAST_TILE_STORE(1, out + kLanes, c_bytes);
  if (two_rows) XLNET_FAST_TILE_STORE(2, out + kAmxRows * stride, c_bytes);
  if (two_rows && two_columns) XLNET_FAST_TILE_STORE(3, out + kAmxRows * stride + kLanes, c_bytes);
  settle_memory();
}

// out[rows, vectors * kLanes] = A B of one panel; rows: 16 or 32.
inline void amx_panel(int64_t rows, int vectors, Left a, const float* panel, int64_t depth,
                      float* out, int64_t stride) {
  const int64_t width = vectors * kLanes;
  for (int v = 0; v < vectors; v += 2) {
    const bool two_rows = rows > kAmxRows, two_columns = v + 1 < vectors;
    const float* b = panel + v * kLanes;
    float* c = out + v * kLanes;
    if (two_rows && two_columns) {
      amx_block(true, true, a, b, width, depth, c, stride);
    } else if (two_rows) {
      amx_block(true, false, a, b, width, depth, c, stride);
    } else if (two_columns) {
      amx_block(false, true, a, b, width, depth, c, stride);
    } else {
      amx_block(false, false, a, b, width, depth, c, stride);
    }
  }
}

// C (+)= A B; rows and depth are whole blocks.
inline void multiply_amx(int64_t rows, int64_t columns, int64_t depth, Left a, Right b, float* c,
                         int64_t stride, bool add) {
  alignas(64) float sum[2 * kAmxRows * kPanel];
  for (int64_t column = 0; column < columns; column += kPanel) {
    const int vectors = vectors_at(column, columns);
    const float* panel = b.panel(column, vectors, 0);
    for (int64_t i = 0; i < rows; i += 2 * kAmxRows) {
      const int64_t count = min_of(2 * kAmxRows, rows - i);
      float* out = c + i * stride + column;
      if (!add) {
        amx_panel(count, vectors, from(a, i, 0), panel, depth, out, stride);
        continue;
      }
      amx_panel(count, vectors, from(a, i, 0), panel, depth, sum, kPanel);
      for (int64_t row = 0; row < count; ++row) {
        for (int64_t v = 0; v < vectors * kLanes; v += kLanes) {
          float* at = out + row * stride + v;
          store(at, load(at) + load(sum + row * kPanel + v));
        }
      }
    }
  }
}

// As shifted_tile, of 16 rows.
inline void shifted_amx(Left a, int vectors, const float* panel, int64_t depth,
                        int64_t first_column, const int64_t* shift, int64_t width, float* out,
                        int64_t stride) {
  alignas(64) float product[kAmxRows * kPanel];
  amx_panel(kAmxRows, vectors, a, panel, depth, product, kPanel);
  for (int64_t i = 0; i < kAmxRows; ++i) {
    const int64_t column = first_column - shift[i];
    if (column <= -kPanel || column >= width) continue;
    for (int64_t v = 0; v < vectors * kLanes; v += kLanes) {
      store(out + i * stride + column + v, load(product + i * kPanel + v));
    }
  }
}

}  // namespace
}  // namespace xlnet_fast::cpu::XLNET_FAST_ISA
