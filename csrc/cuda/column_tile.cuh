// A block whose tile is of columns, keys or rows of r, and that goes over tiles of query rows: what
// the backward kernels of dk, dv and of dr have in common.
//
// A warp computes dS (and P) of its own 16 rows, as the other kernels do. Then they are exchanged
// through shared memory, rounded, and each warp adds up the products of 16 of the block's columns
// with all rows: nothing is added in an order that could change. Where D leaves registers for 32
// columns only, two warps share 16 columns, each with half of their sums.
#pragma once

#include "shapes.cuh"

namespace xlnet_fast::cuda {

// 16 rows of a tile plus a bias, rounded, as the A operand of products: an OperandA that is made
// when it is asked for. The bias is a row in global memory or null.
template <class Element, int D>
struct BiasedRows {
  Tile<D> tile;
  int row;
  const char* bias;
  int head_dim;
  const Place& at;

  XLNET_FAST_DEVICE void get(int step, uint32_t (&a)[4]) const {
    tile.load_a(a, row, step, at.lane);
    if (bias == nullptr) return;
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      const Pair b = load_pair<Element>(bias, 16 * step + 8 * (word / 2) + 2 * at.t, head_dim);
      const Pair x = unpack(Element{}, a[word]);
      a[word] = pack(Element{}, x.low + b.low, x.high + b.high);
    }
  }
};

// The same in registers, for products that need it several times.
template <class Element, int D>
XLNET_FAST_DEVICE OperandA<D, kColumnThreads, false> in_registers(
    const BiasedRows<Element, D>& rows) {
  OperandA<D, kColumnThreads, false> operand(0, rows.at);
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
    uint32_t a[4];
    rows.get(step, a);
    operand.set(step, a);
  }
  return operand;
}

// Whether rows of a stream may see no key: they are uniform over all.
XLNET_FAST_DEVICE bool hides_rows(const Head& head, const AttentionStream& stream) {
  return !stream.see_self && (head.padded() || stream.rank_q != nullptr || stream.bits != nullptr);
}

// One warp's rows of one tile with the statistics of their softmax, which the forward kernel and
// that of dq left.
template <class Element, int D, bool kInOrder>
struct SoftmaxRows {
  const AttentionStream& stream;
  const Head& head;
  Rows<kInOrder> rows;
  float lse[2], delta[2], norm[2], c[2];

  XLNET_FAST_DEVICE SoftmaxRows(const AttentionStream& its_stream, const Head& its_head, int first,
                                const Place& at)
      : stream(its_stream), head(its_head), rows(its_stream, its_head, first, at) {
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const bool present = rows.present(upper);
      const int64_t i = head.flat() * stream.rows + rows.index(upper);
      lse[upper] = present ? load(stream.stats + i) : infinity();
      delta[upper] = present ? load(stream.delta + i) : 0.0f;
      norm[upper] = present ? load(stream.norm + i) : 0.0f;
      c[upper] = present && head.segmented() ? load(stream.c + i) : 0.0f;
    }
  }

  // P of the score with key j, in units of log2 and without the segment's part; `visible`: it is
  // not zero for sure.
  template <int Tiles>
  XLNET_FAST_DEVICE float probability(float score, const Mask<Tiles>& mask, int n, int e, int j,
                                      bool& visible) const {
    const int upper = e / 2;
    visible = mask.is_visible(n, e) && rows.present(upper);
    const float s = score + (mask.is_other_segment(n, e) ? c[upper] : 0.0f);
    float p = visible ? exp2_approx(s - lse[upper]) * norm[upper] : 0.0f;
    if (rows.present(upper) && lse[upper] == infinity() && j >= 0 && j < head.keys()) {
      p = 1.0f / static_cast<float>(head.keys()), visible = true;  // sees no key: uniform
    }
    return p;
  }
};

// Sums over a block's rows for each of its columns: every thread adds its own two rows, in `add`,
// and `finish` leaves the sums of all in shared memory, `Columns` floats at `scratch`, which needs
// Columns * (1 + kColumnWarps) of them.
template <int Columns>
struct ColumnSums {
  float of[Columns / 8][2] = {};

  XLNET_FAST_DEVICE void add(int n, int e, float x) { of[n][e % 2] += x; }
  XLNET_FAST_DEVICE void finish(uint32_t scratch, const Place& at) {
#pragma unroll
    for (int n = 0; n < Columns / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
#pragma unroll
        for (int step = 4; step < kWarpSize; step *= 2) of[n][e] += shuffle_xor(of[n][e], step);
        const int column = 8 * n + 2 * at.t + e;
        if (at.g == 0) {
          store_shared<float>(
              scratch + static_cast<uint32_t>(4 * (Columns * (1 + at.warp) + column)), of[n][e]);
        }
      }
    }
    block_barrier();
    if (at.thread < Columns) {
      float sum = 0.0f;
#pragma unroll
      for (int warp = 0; warp < kColumnWarps; ++warp) {
        sum += load_shared<float>(scratch +
                                  static_cast<uint32_t>(4 * (Columns * (1 + warp) + at.thread)));
      }
      store_shared<float>(scratch + static_cast<uint32_t>(4 * at.thread), sum);
    }
    block_barrier();
  }
  XLNET_FAST_DEVICE static float get(uint32_t scratch, int column) {
    return load_shared<float>(scratch + static_cast<uint32_t>(4 * column));
  }
};

// part[d] = sum over the block's columns of sums * their row of the tile: what a bias gets of it.
template <class Element, int D>
XLNET_FAST_DEVICE void write_weighted_rows(float* part, const Tile<D>& tile, uint32_t sums,
                                           float scale, int head_dim, int thread) {
  if (2 * thread >= head_dim) return;
  Pair total{0.0f, 0.0f};
  for (int row = 0; row < kBlockColumns<D>; ++row) {
    const uint32_t offset = tile.at(row, thread / 4) + static_cast<uint32_t>(4 * (thread % 4));
    const Pair x = unpack(Element{}, load_shared<uint32_t>(offset));
    const float sum = ColumnSums<kBlockColumns<D>>::get(sums, row);
    total.low += sum * x.low, total.high += sum * x.high;
  }
  store(part + 2 * thread, total.low * scale);
  store(part + 2 * thread + 1, total.high * scale);
}

}  // namespace xlnet_fast::cuda
