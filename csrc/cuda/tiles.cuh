// Tiles of rows in shared memory, and the fragments of matrix products that come from them.
#pragma once

#include "primitives.cuh"

namespace xlnet_fast::cuda {

constexpr int kWarpSize = 32;
constexpr float kLog2E = 1.44269504088896341f;  // exponents are kept in units of log2

// Where a thread is in its block, and in the fragments of primitives.cuh.
struct Place {
  int thread, warp, lane;
  int g, t;  // lane / 4, lane % 4
};

XLNET_FAST_DEVICE Place place() {
  const int thread = thread_index(), lane = thread % kWarpSize;
  return {thread, thread / kWarpSize, lane, lane / 4, lane % 4};
}

constexpr int max_of(int a, int b) { return a > b ? a : b; }

XLNET_FAST_DEVICE int minimum(int a, int b) { return a < b ? a : b; }
XLNET_FAST_DEVICE int maximum(int a, int b) { return a > b ? a : b; }

// Of four neighbouring lanes, which hold a row of a fragment.
XLNET_FAST_DEVICE float row_sum(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}
XLNET_FAST_DEVICE float row_max(float x) {
  x = maximum(x, shuffle_xor(x, 1));
  return maximum(x, shuffle_xor(x, 2));
}

// Rows of D two-byte elements in shared memory. Pieces of 16 bytes are swizzled within a row, so
// that eight rows of one matrix lie in different banks.
template <int D>
struct Tile {
  static constexpr int kPieces = D / 8;
  static constexpr int kRowBytes = 2 * D;

  uint32_t base;

  XLNET_FAST_DEVICE uint32_t at(int row, int piece) const {
    const int swizzled = kPieces >= 8 ? piece ^ (row & 7) : piece ^ (row >> 1 & 3);
    return base + static_cast<uint32_t>(row * kRowBytes + 16 * swizzled);
  }
  // Of row first + r, where `first` is a multiple of 8: the swizzle is that of r.
  XLNET_FAST_DEVICE uint32_t at(int first, int r, int piece) const {
    return at(r, piece) + static_cast<uint32_t>(first * kRowBytes);
  }

  // Of 16 rows from `row` on, a multiple of 16, and 16 elements from 16 * step on. A: the rows of a
  // product's A operand. B: columns of its B operand, words 0 and 1 those of the first eight rows.
  XLNET_FAST_DEVICE void load_a(uint32_t (&words)[4], int row, int step, int lane) const {
    ldmatrix(words, at(row, lane % 16, 2 * step + lane / 16));
  }
  XLNET_FAST_DEVICE void load_b(uint32_t (&words)[4], int row, int step, int lane) const {
    ldmatrix(words, at(row, lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
  }
  // The same of the transposed tile: its rows are what a product sums over.
  XLNET_FAST_DEVICE void load_a_transposed(uint32_t (&words)[4], int row, int step,
                                           int lane) const {
    ldmatrix_transposed(words, at(row, lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
  }
  XLNET_FAST_DEVICE void load_b_transposed(uint32_t (&words)[4], int row, int step,
                                           int lane) const {
    ldmatrix_transposed(words, at(row, lane % 16, 2 * step + lane / 16));
  }
};

// Rows of one batch element and head in global memory: of q, of r, of k and v of which the first
// `apart` may lie in a tensor of their own.
struct Source {
  const char* rows;
  int64_t stride;  // bytes from one row to the next
  const char* apart_rows = nullptr;
  int64_t apart_stride = 0;
  int apart = 0;

  // Chosen, not branched to: lanes of a warp may be on both sides.
  XLNET_FAST_DEVICE const char* at(int row) const {
    const auto given = static_cast<uint32_t>(row), first = static_cast<uint32_t>(apart);
    const bool is_apart = given < first;  // unsigned, or `apart` of zero would not decide it
    const uint32_t there = is_apart ? given : given - first;
    return (is_apart ? apart_rows : rows) + there * (is_apart ? apart_stride : stride);
  }
};

// A row of a ring of `Ring` rows, counted from its start: `row` is below twice that.
template <int Ring>
XLNET_FAST_DEVICE int wrapped(int row) {
  if constexpr ((Ring & (Ring - 1)) == 0) return row & (Ring - 1);
  return row < Ring ? row : row - Ring;
}

// Begins to copy `Rows` rows of each source to its tile: row r, counted from `first`, a multiple of
// 8, is that of number row_of(r), or zero where that is negative. Elements from head_dim to D are
// zero. A thread copies the same piece of every row that is its own.
template <int D, int Rows, int Threads, int Count, class RowOf>
XLNET_FAST_DEVICE void copy_rows(const Tile<D> (&tiles)[Count], int first,
                                 const Source (&sources)[Count], int head_dim, int thread,
                                 const RowOf& row_of) {
  constexpr int kPieces = Tile<D>::kPieces, kAtOnce = Threads / kPieces;
  static_assert(Threads % kPieces == 0 && Rows % kAtOnce == 0);
  const auto place = static_cast<uint32_t>(thread);
  const int mine = static_cast<int>(place / kPieces), c = static_cast<int>(place % kPieces);
  const bool inside = 8 * c < head_dim;
#pragma unroll
  for (int r = mine, i = 0; i < Rows / kAtOnce; ++i, r += kAtOnce) {
    const int row = row_of(r);
    const bool present = row >= 0 && inside;
#pragma unroll
    for (int x = 0; x < Count; ++x) {
      copy_async(tiles[x].at(first, r, c), sources[x].at(present ? row : 0) + (inside ? 16 * c : 0),
                 present);
    }
  }
}

// --- fragments ----------------------------------------------------------------------------------

// The C fragments of products, 16 rows and 8 * Tiles columns.
template <int Tiles>
using Accumulator = float[Tiles][4];

template <int Tiles>
XLNET_FAST_DEVICE void clear(Accumulator<Tiles>& x) {
#pragma unroll
  for (int n = 0; n < Tiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) x[n][e] = 0.0f;
  }
}

// The A fragments of products, 16 rows of D terms: in registers, or in shared memory where
// registers are scarce, each thread's own words in a place that no other touches.
template <int D, int Threads, bool kInShared>
struct OperandA {
  static constexpr int kBytes = kInShared ? D / 16 * 16 * Threads : 0;

  uint32_t base;  // of this thread
  uint32_t words[kInShared ? 1 : D / 16][4];

  XLNET_FAST_DEVICE OperandA(uint32_t first, const Place& at)
      : base(first + static_cast<uint32_t>(16 * at.thread)) {}

  // The same for a product that needs it several times.
  XLNET_FAST_DEVICE OperandA<D, Threads, false> in_registers(const Place& at) const {
    OperandA<D, Threads, false> copy(0, at);
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      uint32_t a[4];
      get(step, a);
      copy.set(step, a);
    }
    return copy;
  }

  XLNET_FAST_DEVICE void set(int step, const uint32_t (&a)[4]) {
    if constexpr (kInShared) {
      store_shared(base + static_cast<uint32_t>(16 * Threads * step),
                   Chunk{{a[0], a[1], a[2], a[3]}});
    } else {
#pragma unroll
      for (int w = 0; w < 4; ++w) words[step][w] = a[w];
    }
  }
  XLNET_FAST_DEVICE void get(int step, uint32_t (&a)[4]) const {
    if constexpr (kInShared) {
      const Chunk chunk = load_shared<Chunk>(base + static_cast<uint32_t>(16 * Threads * step));
#pragma unroll
      for (int w = 0; w < 4; ++w) a[w] = chunk.word[w];
    } else {
#pragma unroll
      for (int w = 0; w < 4; ++w) a[w] = words[step][w];
    }
  }
};

// Products of 16 columns: c0 and c1 += a b.
template <class Element>
XLNET_FAST_DEVICE void mma_two(float (&c0)[4], float (&c1)[4], const uint32_t (&a)[4],
                               const uint32_t (&b)[4]) {
  mma(Element{}, c0, a, b[0], b[1]);
  mma(Element{}, c1, a, b[2], b[3]);
}

// out += operand * (8 * Tiles rows of the tile from `row` on)^T.
template <class Element, int D, int Tiles, class Operand>
XLNET_FAST_DEVICE void add_product_transposed(Accumulator<Tiles>& out, const Operand& operand,
                                              const Tile<D>& tile, int row, int lane) {
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
    uint32_t a[4];
    operand.get(step, a);
#pragma unroll
    for (int n = 0; n < Tiles / 2; ++n) {
      uint32_t b[4];
      tile.load_b(b, row + 16 * n, step, lane);
      mma_two<Element>(out[2 * n], out[2 * n + 1], a, b);
    }
  }
}

// out += a * (16 rows of the tile from `row` on, elements from 16 * first on).
template <class Element, int Tiles, int D>
XLNET_FAST_DEVICE void add_step(Accumulator<Tiles>& out, const uint32_t (&a)[4],
                                const Tile<D>& tile, int row, int first, int lane) {
#pragma unroll
  for (int n = 0; n < Tiles / 2; ++n) {
    uint32_t b[4];
    tile.load_b_transposed(b, row, first + n, lane);
    mma_two<Element>(out[2 * n], out[2 * n + 1], a, b);
  }
}

// out += x, rounded, * (8 * Tiles rows of the tile): an accumulator as the A operand of a product.
template <class Element, int D, int Tiles>
XLNET_FAST_DEVICE void add_product(Accumulator<D / 8>& out, const Accumulator<Tiles>& x,
                                   const Tile<D>& tile, int lane) {
#pragma unroll
  for (int step = 0; step < Tiles / 2; ++step) {
    uint32_t a[4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float (&c)[4] = x[2 * step + half];
      a[2 * half] = pack(Element{}, c[0], c[1]);
      a[2 * half + 1] = pack(Element{}, c[2], c[3]);
    }
    add_step<Element, D / 8>(out, a, tile, 16 * step, 0, lane);
  }
}

// out += (columns 16 * column .. + 15 of `a_tile`)^T * (elements from 16 * first on of `tile`);
// both have `Rows` rows.
template <class Element, int Rows, int Tiles, int D, int Columns>
XLNET_FAST_DEVICE void add_product_of_columns(Accumulator<Tiles>& out, const Tile<Columns>& a_tile,
                                              int column, const Tile<D>& tile, int first,
                                              int lane) {
#pragma unroll
  for (int step = 0; step < Rows / 16; ++step) {
    uint32_t a[4];
    a_tile.load_a_transposed(a, 16 * step, column, lane);
    add_step<Element, Tiles>(out, a, tile, 16 * step, first, lane);
  }
}

// Rounds an accumulator and writes it to rows row .. row + 15 of a tile.
template <class Element, int Columns>
XLNET_FAST_DEVICE void store_rows(const Tile<Columns>& tile, int row,
                                  const Accumulator<Columns / 8>& x, const Place& at) {
#pragma unroll
  for (int n = 0; n < Columns / 8; ++n) {
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      store_shared(tile.at(row + 8 * upper, at.g, n) + static_cast<uint32_t>(4 * at.t),
                   pack(Element{}, x[n][2 * upper], x[n][2 * upper + 1]));
    }
  }
}

// --- rows in global memory
// ------------------------------------------------------------------------

// Elements d and d + 1 of a row as floats; zero where there is no row, and beyond head_dim.
template <class Element>
XLNET_FAST_DEVICE Pair load_pair(const char* row, int d, int head_dim) {
  if (row == nullptr || d >= head_dim) return {0.0f, 0.0f};
  return unpack(Element{}, load(reinterpret_cast<const uint32_t*>(row + 2 * d)));
}

// Rounds and writes 16 rows of an accumulator times a factor each, row_at(0) for g, row_at(1) for g
// + 8; null: not written.
template <class Element, int D, class RowAt>
XLNET_FAST_DEVICE void write_rows(const float (&x)[D / 8][4], const float (&factor)[2],
                                  const RowAt& row_at, int head_dim, int t) {
#pragma unroll
  for (int upper = 0; upper < 2; ++upper) {
    char* row = row_at(upper);
    if (row == nullptr) continue;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      if (8 * n >= head_dim) continue;
      store(reinterpret_cast<uint32_t*>(row + 2 * (8 * n + 2 * t)),
            pack(Element{}, x[n][2 * upper] * factor[upper], x[n][2 * upper + 1] * factor[upper]));
    }
  }
}

}  // namespace xlnet_fast::cuda
