// Relative attention backward, the kernel whose blocks are tiles of rows of r: parts of dr and of d
// r_r_bias.
//
//     dr_p = scale sum over b of the group and i of dS[i, p + pos_i - L] (q_i + r_r_bias)
//     d r_r_bias = scale sum_p (sum over b, i of dS[i, p + pos_i - L]) r_p
//
// A block keeps its rows of r and goes over batch elements, streams and tiles of rows. What is
// aligned and what is shifted change places: a row's scores are those with keys p - L + pos_i, so
// the position scores are a plain product, and the products with keys and values come from a window
// of keys (window.cuh). Tiles of r begin at multiples of their size from L, so that windows of keys
// begin at multiples of 16, as dropout's groups of four want it.
//
// The batch elements of a group of r may be split among blocks; whoever calls adds up their parts.
#pragma once

#include "column_tile.cuh"
#include "rel_attention.h"

namespace xlnet_fast::cuda {

struct TableCall {
  AttentionCall call;
  int tiles;    // of rows of r
  int first_p;  // of the first tile: 0, or below it
};

template <class Shape>
struct TableTile {
  using Element = typename Shape::Element;
  static constexpr int D = Shape::D, kColumns = Shape::kColumns, kWindow = Shape::kWindow;
  static constexpr int kTiles = D / 8 / kShares<D>;  // of dr's columns, those of a warp
  using Scores = Accumulator<kColumns / 8>;

  const Place at = place();
  const AttentionKeys& keys;
  const int n, p0;
  const int group, share;  // which 16 rows of r are the warp's, and which part of their elements
  Accumulator<kTiles> dr;
  ColumnSums<kColumns> sums;

  XLNET_FAST_DEVICE TableTile(const AttentionCall& call, int its_n, int its_p0)
      : keys(call.keys),
        n(its_n),
        p0(its_p0),
        group(at.warp % (kColumns / 16)),
        share(at.warp / (kColumns / 16)) {
    clear<kTiles>(dr);
  }

  XLNET_FAST_DEVICE static Tile<D> r() { return {0}; }
  XLNET_FAST_DEVICE static Tile<D> q() { return {Shape::kQ}; }
  XLNET_FAST_DEVICE static Tile<D> d_out() { return {Shape::kDOut}; }
  XLNET_FAST_DEVICE static Tile<D> k() { return {Shape::kKeys}; }
  XLNET_FAST_DEVICE static Tile<D> v() { return {Shape::kValues}; }
  XLNET_FAST_DEVICE static Tile<kColumns> exchange() { return {Shape::kExchange}; }
  XLNET_FAST_DEVICE static KeyMetadata<kWindow> metadata() { return {Shape::kMetadata}; }
  XLNET_FAST_DEVICE Strip<kColumns> strip() const {
    return {Shape::kStrips + static_cast<uint32_t>(at.warp * Strip<kColumns>::kBytes)};
  }

  XLNET_FAST_DEVICE void load_table(const Head& head) const {
    copy_rows<D, kColumns, kColumnThreads>({r()}, 0, {head.r()}, head.head_dim(), at.thread,
                                           [&](int row) { return head.row_of_r(p0 + row); });
    commit_copies();
    wait_copies<0>();
    block_barrier();
  }

  // First key of the window that a tile of rows in order meets.
  XLNET_FAST_DEVICE int first_key(const Head& head, int first_row) const {
    return p0 - head.current() + first_row;
  }

  template <bool kInOrder>
  XLNET_FAST_DEVICE void load_rows(const Head& head, const AttentionStream& stream,
                                   int first) const {
    const int count = static_cast<int>(stream.rows);
    const auto row_of = [&](int row) {
      const int i = first + row;
      if (i >= count) return -1;
      if (!kInOrder && load(stream.positions + head.b * stream.rows + i) < 0) return -1;
      return i;
    };
    const Source q_rows{address(stream.q, head.b, 0, n), 2 * stream.q.stride[1]};
    const Source d_rows{address(stream.d_out, head.b, 0, n), 2 * stream.d_out.stride[1]};
    copy_rows<D, kTileRows, kColumnThreads>({q(), d_out()}, 0, {q_rows, d_rows}, head.head_dim(),
                                            at.thread, row_of);
    if constexpr (kInOrder) {
      const int j0 = first_key(head, first);
      copy_keys<D, kWindow, kColumnThreads>({k(), v()}, {head.k(), head.v()}, head, j0, true,
                                            at.thread);
      for (int key = at.thread; key < kWindow; key += kColumnThreads) {
        metadata().write(key, look_up_key(head, j0 + key));
      }
      commit_copies();
      wait_copies<0>();
      clean_padded_keys<Element, D, kWindow, kColumnThreads>(k(), head, j0, at.thread);
      clean_padded_keys<Element, D, kWindow, kColumnThreads>(v(), head, j0, at.thread);
    } else {
      commit_copies();
      wait_copies<0>();
    }
  }

  // Whether a row may see keys at any of the distances that these rows of r are for.
  XLNET_FAST_DEVICE bool in_view(const Head& head, const AttentionStream& stream) const {
    if (!Limits::any(stream)) return true;
    const Limits limits = Limits::of(stream, head.keys());
    return p0 + kColumns > head.keys() + limits.lowest_distance() &&
           p0 <= head.keys() + limits.highest_distance();
  }

  template <bool kInOrder>
  XLNET_FAST_DEVICE void add_rows(const Head& head, const AttentionStream& stream) {
    const int count = static_cast<int>(stream.rows);
    int begin = 0, end = count;
    if (!in_view(head, stream)) {
      if (!hides_rows(head, stream)) return;
      block_barrier();  // what lay in the scratch has been read
      uniform_range<kColumnWarps>(begin, end, head, stream, Shape::kExchange, at);
    }
    if (kInOrder) {  // the window has keys
      begin = maximum(begin, head.current() - p0 - kWindow + 1);
      end = minimum(end, head.keys() + head.current() - p0);
    }
    for (int first = begin / kTileRows * kTileRows; first < end; first += kTileRows) {
      block_barrier();  // what was there has been read
      load_rows<kInOrder>(head, stream, first);
      block_barrier();
      exchange_scores<kInOrder>(head, stream, first);
      block_barrier();
      add_product_of_columns<Element, kTileRows, kTiles>(dr, exchange(), group, q(),
                                                         share * (kTiles / 2), at.lane);
    }
  }

  // The lowest position of a warp's rows, lowered to a multiple of 4, so that the first key of
  // their window is one, or as far from one as p0 - L is, which is none.
  template <bool kInOrder>
  XLNET_FAST_DEVICE static int window_position(const Rows<kInOrder>& rows) {
    return rows.low / 4 * 4;
  }

  // The warp's window of keys or values.
  template <bool kInOrder>
  XLNET_FAST_DEVICE auto window_of_keys(const Head& head, const Rows<kInOrder>& rows,
                                        const Tile<D>& tile, const Source& source) const {
    const int low = window_position(rows);
    const auto shift = [&rows, low](int upper) { return rows.position(upper) - low; };
    if constexpr (kInOrder) {
      return WindowInOrder<D, kWindow, decltype(shift)>{tile, 16 * at.warp, shift};
    } else {
      const Tile<D> stage{tile.base + static_cast<uint32_t>(at.warp * 32 * Tile<D>::kRowBytes)};
      const int first = p0 - head.current() + low;
      const auto row_of = [&head, first](int w) {
        return head.state(first + w) == kNoKey ? -1 : first + w;
      };
      return WindowAnywhere<D, decltype(shift), decltype(row_of)>{
          stage, source, head.head_dim(), rows.top - low, shift, row_of};
    }
  }

  // dS of the warp's rows, to where all warps can read it.
  template <bool kInOrder>
  XLNET_FAST_DEVICE void exchange_scores(const Head& head, const AttentionStream& stream,
                                         int first) {
    const float scale = keys.scale * kLog2E;
    const int mine = 16 * at.warp;
    const SoftmaxRows<Element, D, kInOrder> softmax(stream, head, first + mine, at);
    using Biased = BiasedRows<Element, D>;
    const Biased q_r{q(), mine, head.bias(keys.r_r_bias), head.head_dim(), at};
    const int j0 = p0 - head.current();
    Mask<kColumns / 8> mask;
    if constexpr (kInOrder) {
      mask = make_shifted_mask<kColumns / 8>(softmax.rows, head, metadata(), first_key(head, first),
                                             j0, at);
    } else {
      mask =
          make_shifted_mask<kColumns / 8>(softmax.rows, head, KeyMetadataInGlobal{head}, 0, j0, at);
    }
    Scores scores, d_p;
    const auto of_k = window_of_keys(head, softmax.rows, k(), head.k());
    const auto q_w = in_registers(Biased{q(), mine, head.bias(keys.r_w_bias), head.head_dim(), at});
    shifted_products<Element, D, kColumns>(scores, q_w, of_k, strip(), at);
    add_product_transposed<Element, D, kColumns / 8>(scores, q_r, r(), 0, at.lane);
    const auto of_v = window_of_keys(head, softmax.rows, v(), head.v());
    const int window_key = j0 + window_position(softmax.rows);
    const auto d_o = in_registers(Biased{d_out(), mine, nullptr, head.head_dim(), at});
    shifted_products<Element, D, kColumns>(
        d_p, d_o, of_v, strip(), at, [&](Accumulator<2>& products, int chunk) {
          drop(products, softmax.rows, head, window_key + 16 * chunk);
        });
    for_each_score<kColumns / 8>([&](int n8, int e) {
      bool visible;
      const int j = j0 + 8 * n8 + 2 * at.t + e % 2 + softmax.rows.position(e / 2);
      const float p = softmax.probability(scores[n8][e] * scale, mask, n8, e, j, visible);
      const float ds = visible ? p * (d_p[n8][e] - softmax.delta[e / 2]) : 0.0f;
      sums.add(n8, e, ds);
      scores[n8][e] = ds;
    });
    store_rows<Element>(exchange(), mine, scores, at);
  }

  // dP of 16 keys from j on under dropout.
  template <bool kInOrder>
  XLNET_FAST_DEVICE void drop(Accumulator<2>& d_p, const Rows<kInOrder>& rows, const Head& head,
                              int j) const {
    if (!keys.dropout) return;
    const uint32_t keep = dropout_keep_mask<2>(rows, head, j, at);
    for_each_score<2>([&](int n8, int e) {
      d_p[n8][e] = is_kept(keep, n8, e) ? d_p[n8][e] * keys.keep_scale : 0.0f;
    });
  }

  // `part` is [split, g, n], `bias_part` [split, tile, g, n].
  XLNET_FAST_DEVICE void finish(const AttentionGradients& gradients, int64_t part,
                                int64_t bias_part) {
    block_barrier();
    const uint32_t scratch = Shape::kExchange;
    sums.finish(scratch, at);
    const int head_dim = static_cast<int>(keys.head_dim);
    write_weighted_rows<Element, D>(gradients.r_r_bias_parts + bias_part * head_dim, r(), scratch,
                                    keys.scale, head_dim, at.thread);
    const char* bias = address(keys.r_r_bias, n, 0, 0);
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const int column = 16 * group + 8 * upper + at.g;
      const int row_of_r = p0 + column - static_cast<int>(keys.table_start);
      if (row_of_r < 0 || row_of_r >= static_cast<int>(keys.table)) continue;
      const float sum = ColumnSums<kColumns>::get(scratch, column);
      float* row = gradients.r_parts + (part * keys.table + row_of_r) * head_dim;
#pragma unroll
      for (int n8 = 0; n8 < kTiles; ++n8) {
        const int d = 8 * (share * kTiles + n8) + 2 * at.t;
        if (d >= head_dim) continue;
        const Pair b = load_pair<Element>(bias, d, head_dim);
        store(row + d, (dr[n8][2 * upper] + sum * b.low) * keys.scale);
        store(row + d + 1, (dr[n8][2 * upper + 1] + sum * b.high) * keys.scale);
      }
    }
  }
};

// One block for each tile of rows of r, head, group and split of its batch elements.
template <class Shape, int kSharedBytes>
XLNET_FAST_KERNEL(kColumnThreads, 1)
rel_attention_backward_r_kernel(XLNET_FAST_PARAMETER TableCall table_call) {
  const AttentionCall& call = table_call.call;
  const int heads = static_cast<int>(call.keys.heads), groups = static_cast<int>(call.keys.groups);
  const int splits = static_cast<int>(call.gradients.splits);
  const int tile = block_index() % table_call.tiles;
  const int part = block_index() / table_call.tiles;  // [split, g, n]
  const int n = part % heads, g = part / heads % groups, split = part / (heads * groups);
  const int elements = static_cast<int>(call.keys.batch) / groups;
  TableTile<Shape> table_tile(call, n, table_call.first_p + tile * Shape::kColumns);
  table_tile.load_table({call.keys, g * elements, n});
  for (int b = split; b < elements; b += splits) {
    const Head head{call.keys, g * elements + b, n};
    for (int s = 0; s < call.streams; ++s) {
      if (call.stream[s].positions == nullptr) {
        table_tile.template add_rows<true>(head, call.stream[s]);
      } else {
        table_tile.template add_rows<false>(head, call.stream[s]);
      }
    }
  }
  const int64_t bias_part =
      ((static_cast<int64_t>(split) * table_call.tiles + tile) * groups + g) * heads + n;
  table_tile.finish(call.gradients, part, bias_part);
}

template <class Shape>
void launch_rel_attention_backward_r(const AttentionCall& call, Stream stream) {
  const auto current = static_cast<int>(call.keys.keys - call.keys.memory);
  const int first_p =
      current % Shape::kColumns == 0 ? 0 : current % Shape::kColumns - Shape::kColumns;
  const auto end_p = static_cast<int>(call.keys.table + call.keys.table_start);
  const int tiles = (end_p - first_p + Shape::kColumns - 1) / Shape::kColumns;
  const TableCall table_call{call, tiles, first_p};
  const int64_t parts = call.gradients.splits * call.keys.groups * call.keys.heads;
  launch(&rel_attention_backward_r_kernel<Shape, Shape::kSharedBytes>,
         {parts * tiles, kColumnThreads, Shape::kSharedBytes}, stream, table_call);
}

}  // namespace xlnet_fast::cuda
