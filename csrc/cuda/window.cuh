// Products of a warp's query rows with a window of rows of another table, each row of the result
// shifted by its own position: how position scores reach their keys, without any shift in memory.
//
// Row i of the tile at position pos and row w of the window belong to column w - shift(i). For
// scores by keys the window is of r, row p = j0 + L - top + w, and shift = top - pos. For scores by
// rows of r it is of keys, key j = p0 - L + low + w, and shift = pos - low. The warp writes
// products shifted into a strip of shared memory of its own and reads them back aligned: no barrier
// of the block, and no order of the positions.
#pragma once

#include "mask.cuh"

namespace xlnet_fast::cuda {

// 16 rows of Columns floats, of one warp. Eight floats between rows keep reads of pairs in
// different banks.
template <int Columns>
struct Strip {
  static constexpr int kStride = Columns + 8;
  static constexpr int kBytes = 16 * kStride * 4;

  uint32_t base;

  XLNET_FAST_DEVICE uint32_t at(int row, int column) const {
    return base + static_cast<uint32_t>(4 * (row * kStride + column));
  }
  // Whether there is such a column. Where `kNear` it is at most 15 below `from` and 6 above, which
  // leaves a question at the ends only: `from` is known when the kernel is compiled.
  template <bool kNear>
  XLNET_FAST_DEVICE static bool holds(int column, int from) {
    if constexpr (!kNear) return static_cast<unsigned>(column) < static_cast<unsigned>(Columns);
    return (from >= 15 || column >= 0) && (from + 6 < Columns || column < Columns);
  }

  // Products with window rows w .. w + 15, each row shifted by shift(upper) to the left, of which
  // `kNear` says that it is between 0 and 15.
  template <bool kNear, class Shift>
  XLNET_FAST_DEVICE void store_shifted(const Accumulator<2>& x, int w, const Shift& shift,
                                       const Place& place) const {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int from = w + 8 * n + e % 2, column = from + 2 * place.t - shift(e / 2);
        if (holds<kNear>(column, from))
          store_shared<float>(at(8 * (e / 2) + place.g, column), x[n][e]);
      }
    }
  }
  XLNET_FAST_DEVICE void load(Accumulator<Columns / 8>& x, const Place& place) const {
#pragma unroll
    for (int n = 0; n < Columns / 8; ++n) {
#pragma unroll
      for (int upper = 0; upper < 2; ++upper) {
        const Pair pair = load_shared<Pair>(at(8 * upper + place.g, 8 * n + 2 * place.t));
        x[n][2 * upper] = pair.low, x[n][2 * upper + 1] = pair.high;
      }
    }
  }

  // The other way: all columns rounded and stored as they are, and window rows w .. w + 15 read
  // shifted, as the A operand of a product; zero outside of the columns.
  template <class Element>
  XLNET_FAST_DEVICE void store_rounded(const Accumulator<Columns / 8>& x,
                                       const Place& place) const {
#pragma unroll
    for (int n = 0; n < Columns / 8; ++n) {
#pragma unroll
      for (int upper = 0; upper < 2; ++upper) {
        store_shared(at(8 * upper + place.g, 4 * n + place.t),
                     pack(Element{}, x[n][2 * upper], x[n][2 * upper + 1]));
      }
    }
  }
  template <bool kNear, class Shift>
  XLNET_FAST_DEVICE void load_shifted(uint32_t (&a)[4], int w, const Shift& shift,
                                      const Place& place) const {
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      const int upper = word % 2;
      a[word] = 0;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int from = w + 8 * (word / 2) + e, column = from + 2 * place.t - shift(upper);
        if (!holds<kNear>(column, from)) continue;
        const uint32_t offset = at(8 * upper + place.g, 0) + 2 * static_cast<uint32_t>(column);
        a[word] |= uint32_t{load_shared<uint16_t>(offset)} << (16 * e);
      }
    }
  }
};

// A window in rows that the whole block has loaded, for rows of the query tile that follow each
// other: chunk c is 16 rows of the tile from first + 16 * c on, a multiple of 16 below 2 * Ring,
// which is counted modulo Ring.
template <int D, int Ring, class Shift>
struct WindowInOrder {
  static constexpr bool kInOrder = true;  // so the 16 rows of a warp shift by 0 to 15

  Tile<D> tile;
  int first;
  Shift shift;  // of a row, 0 or 1 for g or g + 8

  template <int Columns, class Use>
  XLNET_FAST_DEVICE void for_each_chunk(const Place&, const Use& use) const {
#pragma unroll
    for (int chunk = 0; chunk < Columns / 16 + 1; ++chunk) {
      use(chunk, tile, wrapped<Ring>(first + 16 * chunk));
    }
  }
};

// A window in global memory, row_of(w) or -1 for none, that reaches `reach` rows beyond the
// columns: chunks go through 32 rows of shared memory that belong to the warp. No copy may be under
// way when it begins.
template <int D, class Shift, class RowOf>
struct WindowAnywhere {
  static constexpr bool kInOrder = false;

  Tile<D> stage;  // 32 rows
  Source source;
  int head_dim;
  int reach;
  Shift shift;
  RowOf row_of;

  XLNET_FAST_DEVICE void begin(int chunk, const Place& place) const {
    copy_rows<D, 16, kWarpSize>({stage}, chunk % 2 * 16, {source}, head_dim, place.lane,
                                [&](int r) { return row_of(16 * chunk + r); });
    commit_copies();
  }
  template <int Columns, class Use>
  XLNET_FAST_DEVICE void for_each_chunk(const Place& place, const Use& use) const {
    const int chunks = (Columns + reach + 15) / 16;
    warp_barrier();
    begin(0, place);
    for (int chunk = 0; chunk < chunks; ++chunk) {
      if (chunk + 1 < chunks) {
        begin(chunk + 1, place);
        wait_copies<1>();
      } else {
        wait_copies<0>();
      }
      warp_barrier();
      use(chunk, stage, chunk % 2 * 16);
      warp_barrier();
    }
  }
};

// A warp's window of r for keys from j0 on. `table` is the block's ring, in which the warp's window
// begins at row `first`, or, for rows at positions of their own, 32 rows a warp.
template <int D, int Ring, bool kInOrder>
XLNET_FAST_DEVICE auto window_of_r(const Head& head, const Rows<kInOrder>& rows, int j0,
                                   const Tile<D>& table, int first, const Place& place) {
  const auto shift = [&rows](int upper) { return rows.top - rows.position(upper); };
  if constexpr (kInOrder) {
    return WindowInOrder<D, Ring, decltype(shift)>{table, first, shift};
  } else {
    const Tile<D> stage{table.base + static_cast<uint32_t>(place.warp * 32 * Tile<D>::kRowBytes)};
    const Head here = head.rematerialized();
    const int p0 = j0 + head.current() - rows.top;
    const auto row_of = [here, p0](int w) { return here.row_of_r(p0 + w); };
    return WindowAnywhere<D, decltype(shift), decltype(row_of)>{
        stage, here.r(), head.head_dim(), rows.top - rows.low, shift, row_of};
  }
}

// x = products with the window, shifted. change(products, chunk) may alter them before.
template <class Element, int D, int Columns, class Operand, class Window, class Change>
XLNET_FAST_DEVICE void shifted_products(Accumulator<Columns / 8>& x, const Operand& operand,
                                        const Window& window, const Strip<Columns>& strip,
                                        const Place& place, const Change& change) {
  window.template for_each_chunk<Columns>(place, [&](int chunk, const Tile<D>& tile, int row) {
    Accumulator<2> products;
    clear<2>(products);
    add_product_transposed<Element, D, 2>(products, operand, tile, row, place.lane);
    change(products, chunk);
    strip.template store_shifted<Window::kInOrder>(products, 16 * chunk, window.shift, place);
  });
  warp_barrier();
  strip.load(x, place);
  warp_barrier();
}
template <class Element, int D, int Columns, class Operand, class Window>
XLNET_FAST_DEVICE void shifted_products(Accumulator<Columns / 8>& x, const Operand& operand,
                                        const Window& window, const Strip<Columns>& strip,
                                        const Place& place) {
  shifted_products<Element, D, Columns>(x, operand, window, strip, place,
                                        [](const Accumulator<2>&, int) {});
}

// out += x shifted back, times the window.
template <class Element, int D, int Columns, class Window>
XLNET_FAST_DEVICE void add_shifted_product(Accumulator<D / 8>& out,
                                           const Accumulator<Columns / 8>& x, const Window& window,
                                           const Strip<Columns>& strip, const Place& place) {
  strip.template store_rounded<Element>(x, place);
  warp_barrier();
  window.template for_each_chunk<Columns>(place, [&](int chunk, const Tile<D>& tile, int row) {
    uint32_t a[4];
    strip.template load_shifted<Window::kInOrder>(a, 16 * chunk, window.shift, place);
    add_step<Element, D / 8>(out, a, tile, row, 0, place.lane);
  });
  warp_barrier();
}

}  // namespace xlnet_fast::cuda
