// Relative attention backward, the kernel whose blocks are tiles of keys: dk, dv, and parts of d
// r_w_bias.
//
//     dv_j = sum_i Z_ij P_ij dO_i        dk_j = scale sum_i dS_ij (q_i + r_w_bias)
//     d r_w_bias = scale sum_j (sum_i dS_ij) k_j
//
// A block keeps its keys and values and goes over the rows of both streams. The window of r moves
// down by a tile of rows a step; for rows in order it lies in a ring, as in the forward kernel.
// With s_j = sum_i dS_ij in fp32, dk is made from q without its bias: sum_i dS_ij q_i + s_j
// r_w_bias.
#pragma once

#include "column_tile.cuh"
#include "rel_attention.h"

namespace xlnet_fast::cuda {

struct KeyCall {
  AttentionCall call;
  int tiles;  // of keys
};

template <class Shape>
struct KeyTile {
  using Element = typename Shape::Element;
  static constexpr int D = Shape::D, kColumns = Shape::kColumns;
  static constexpr int kProducts = 2 / kShares<D>;  // of dv and dk, those that a warp adds up
  using Scores = Accumulator<kColumns / 8>;

  const Place at = place();
  const AttentionKeys& keys;
  const Head head;
  const int j0;
  const int group, share;  // which 16 columns are the warp's, and which of dv (0) and dk (1)
  Accumulator<D / 8> totals[kProducts];
  ColumnSums<kColumns> sums;

  XLNET_FAST_DEVICE KeyTile(const AttentionCall& call, int b, int n, int tile)
      : keys(call.keys),
        head{call.keys, b, n},
        j0(tile * kColumns),
        group(at.warp % (kColumns / 16)),
        share(at.warp / (kColumns / 16)) {
#pragma unroll
    for (int x = 0; x < kProducts; ++x) clear<D / 8>(totals[x]);
  }
  // 0: dv, 1: dk.
  XLNET_FAST_DEVICE int product(int x) const { return kProducts == 2 ? x : share; }

  XLNET_FAST_DEVICE static Tile<D> k() { return {0}; }
  XLNET_FAST_DEVICE static Tile<D> v() { return {Shape::kTileBytes}; }
  XLNET_FAST_DEVICE static Tile<D> q(int step) {
    return {Shape::kRowsAt + static_cast<uint32_t>(step % Shape::kStages) * 2 * Shape::kRowsBytes};
  }
  XLNET_FAST_DEVICE static Tile<D> d_out(int step) { return {q(step).base + Shape::kRowsBytes}; }
  XLNET_FAST_DEVICE static Tile<kColumns> exchange(int which) {
    return {Shape::kExchange + static_cast<uint32_t>(which) * Shape::kExchangeBytes};
  }
  XLNET_FAST_DEVICE static KeyMetadata<kColumns> metadata() { return {Shape::kMetadata}; }

  // Keys and values stay; padded ones too, for rows that see no other, NaN and infinity as zero.
  XLNET_FAST_DEVICE void load_keys() const {
    copy_keys<D, kColumns, kColumnThreads>({k(), v()}, {head.k(), head.v()}, head, j0, true,
                                           at.thread);
    commit_copies();
    if (at.thread < kColumns) {
      metadata().write(at.thread, look_up_key(head, j0 + at.thread));
    }
    wait_copies<0>();
    clean_padded_keys<Element, D, kColumns, kColumnThreads>(k(), head, j0, at.thread);
    clean_padded_keys<Element, D, kColumns, kColumnThreads>(v(), head, j0, at.thread);
    block_barrier();
  }

  // First row, and one past the last, that may see any of these keys, of rows in order.
  XLNET_FAST_DEVICE void rows_in_view(int& begin, int& end, const AttentionStream& stream) const {
    if (stream.causal) begin = maximum(begin, j0 - head.memory());
    if (stream.same_length) end = minimum(end, j0 + kColumns);
    if (!Limits::any(stream)) return;
    const Limits limits = Limits::of(stream, head.keys());
    begin = maximum(begin, limits.first_position(j0, head.memory()));
    end = minimum(end, limits.positions_end(j0 + kColumns, head.memory()));
  }

  // Begins to copy a tile of q and d_out, and `Count` rows of the ring: those of the whole window,
  // or the new ones, which come first because the window moves down. `step` counts from the first.
  template <bool kInOrder, int Count>
  XLNET_FAST_DEVICE void begin_copies(const AttentionStream& stream, int tile, int step) const {
    const Head here = head.rematerialized();
    const int first = tile * kTileRows, count = static_cast<int>(stream.rows);
    const auto row_of = [&](int r) {
      const int i = first + r;
      if (i >= count) return -1;
      if (!kInOrder && load(stream.positions + here.b * stream.rows + i) < 0) return -1;
      return i;
    };
    const Source q_rows{address(stream.q, here.b, 0, here.n), 2 * stream.q.stride[1]};
    const Source d_rows{address(stream.d_out, here.b, 0, here.n), 2 * stream.d_out.stride[1]};
    copy_rows<D, kTileRows, kColumnThreads>({q(step), d_out(step)}, 0, {q_rows, d_rows},
                                            head.head_dim(), at.thread, row_of);
    if constexpr (kInOrder) {
      const int p0 = j0 + head.current() - (first + kTileRows - 1);
      copy_rows<D, Count, kColumnThreads>({Tile<D>{Shape::kTable}}, ring_row(step), {here.r()},
                                          head.head_dim(), at.thread,
                                          [&](int w) { return here.row_of_r(p0 + w); });
    }
    commit_copies();
  }
  // Where a step's window begins in the ring. What a step copies is a whole part of the ring.
  XLNET_FAST_DEVICE static int ring_row(int step) {
    static_assert(Shape::kRing % kTileRows == 0);
    const auto moved = static_cast<int>(static_cast<uint32_t>(step * kTileRows) % Shape::kRing);
    return wrapped<Shape::kRing>(Shape::kRing - moved);
  }

  template <bool kInOrder>
  XLNET_FAST_DEVICE void add_rows(const AttentionStream& stream) {
    int begin = 0, end = static_cast<int>(stream.rows), uniform = 0, uniform_end = 0;
    // Rows that see nothing are uniform over all keys: where there may be any all rows count, or,
    // beside a window, which leaves few others, those that are.
    const bool some_uniform = hides_rows(head, stream);
    const bool apart = kInOrder && some_uniform && Limits::any(stream);
    if (kInOrder && (!some_uniform || apart)) rows_in_view(begin, end, stream);
    if (apart) {
      block_barrier();  // what lay in the scratch has been read
      uniform_range<kColumnWarps>(uniform, uniform_end, head, stream, Shape::kExchange, at);
    }
    begin = begin / kTileRows, end = maximum(begin, (end + kTileRows - 1) / kTileRows);
    uniform = uniform / kTileRows, uniform_end = (uniform_end + kTileRows - 1) / kTileRows;
#pragma unroll 1
    for (int part = 0; part < (apart ? 3 : 1); ++part) {
      const int first = part == 0 ? begin : part == 1 ? uniform : maximum(uniform, end);
      const int last = part == 0 ? end : part == 1 ? minimum(uniform_end, begin) : uniform_end;
      add_tiles<kInOrder>(stream, first, last);
    }
  }

  // Adds the rows of tiles begin .. end - 1.
  template <bool kInOrder>
  XLNET_FAST_DEVICE void add_tiles(const AttentionStream& stream, int begin, int end) {
    if (begin >= end) return;
    block_barrier();  // what the last tile before these left has been read
    begin_copies<kInOrder, kTileRows + kColumns>(stream, begin, 0);
    for (int tile = begin; tile < end; ++tile) {
      const int step = tile - begin;
      const bool more = tile + 1 < end;
      wait_copies<0>();
      block_barrier();
      constexpr bool kEarly = Shape::kAhead && kInOrder;
      if (kEarly && more) begin_copies<kInOrder, kTileRows>(stream, tile + 1, step + 1);
      exchange_scores<kInOrder>(stream, tile, step);
      // Rows at positions of their own have waited for copies of theirs: none may be before them.
      if (Shape::kAhead && !kEarly && more) begin_copies<kInOrder, 0>(stream, tile + 1, step + 1);
      block_barrier();
#pragma unroll
      for (int x = 0; x < kProducts; ++x) {
        const int which = product(x);
        add_product_of_columns<Element, kTileRows, D / 8>(
            totals[x], exchange(which), group, which == 0 ? d_out(step) : q(step), 0, at.lane);
      }
      if (!Shape::kAhead && more) {
        block_barrier();
        begin_copies<kInOrder, kTileRows>(stream, tile + 1, step + 1);
      }
    }
  }

  // P with dropout and dS of the warp's rows, to where all warps can read them.
  template <bool kInOrder>
  XLNET_FAST_DEVICE void exchange_scores(const AttentionStream& stream, int tile, int step) {
    const float scale = keys.scale * kLog2E;
    const int mine = 16 * at.warp;
    const SoftmaxRows<Element, D, kInOrder> softmax(stream, head, tile * kTileRows + mine, at);
    const auto mask = make_mask<kColumns / 8>(softmax.rows, head, metadata(), j0, at);
    const uint32_t keep = dropout_keep_mask<kColumns / 8>(softmax.rows, head, j0, at);
    Scores scores, d_p;
    using Biased = BiasedRows<Element, D>;
    const auto q_r =
        in_registers(Biased{q(step), mine, head.bias(keys.r_r_bias), head.head_dim(), at});
    const Biased q_w{q(step), mine, head.bias(keys.r_w_bias), head.head_dim(), at};
    const Biased d_o{d_out(step), mine, nullptr, head.head_dim(), at};
    const int first = ring_row(step) + kTileRows - 16 * (at.warp + 1);  // of the warp's window
    const auto window =
        window_of_r<D, Shape::kRing>(head, softmax.rows, j0, Tile<D>{Shape::kTable}, first, at);
    const Strip<kColumns> strip{Shape::kStrips +
                                static_cast<uint32_t>(at.warp * Strip<kColumns>::kBytes)};
    shifted_products<Element, D, kColumns>(scores, q_r, window, strip, at);
    add_product_transposed<Element, D, kColumns / 8>(scores, q_w, k(), 0, at.lane);
    clear<kColumns / 8>(d_p);
    add_product_transposed<Element, D, kColumns / 8>(d_p, d_o, v(), 0, at.lane);
    const float keep_scale = keys.dropout ? keys.keep_scale : 1.0f;
    for_each_score<kColumns / 8>([&](int n, int e) {
      bool visible;
      const int j = j0 + 8 * n + 2 * at.t + e % 2;
      const float p = softmax.probability(scores[n][e] * scale, mask, n, e, j, visible);
      const float factor = is_kept(keep, n, e) ? keep_scale : 0.0f;
      const float dp = visible ? d_p[n][e] * factor : 0.0f;
      const float ds = p * (dp - softmax.delta[e / 2]);
      sums.add(n, e, ds);
      scores[n][e] = p * factor, d_p[n][e] = ds;
    });
    store_rows<Element>(exchange(0), mine, scores, at);
    store_rows<Element>(exchange(1), mine, d_p, at);
  }

  XLNET_FAST_DEVICE void finish(const AttentionGradients& gradients, int tile) {
    block_barrier();
    const uint32_t scratch = Shape::kExchange;
    sums.finish(scratch, at);
    const int64_t part = (static_cast<int64_t>(tile) * keys.batch + head.b) * keys.heads + head.n;
    write_weighted_rows<Element, D>(gradients.r_w_bias_parts + part * head.head_dim(), k(), scratch,
                                    keys.scale, head.head_dim(), at.thread);
#pragma unroll
    for (int x = 0; x < kProducts; ++x) {
      const bool is_dk = product(x) == 1;
      if (is_dk) add_bias(totals[x], scratch);
      if (head.padded()) stop_at_what_was_cleaned(totals[x], is_dk ? head.k() : head.v());
      write(is_dk ? gradients.k : gradients.v, is_dk ? gradients.k_memory : gradients.v_memory,
            totals[x], is_dk ? keys.scale : 1.0f);
    }
  }

  XLNET_FAST_DEVICE void add_bias(Accumulator<D / 8>& dk, uint32_t scratch) const {
    const char* bias = head.bias(keys.r_w_bias);
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const Pair b = load_pair<Element>(bias, 8 * n + 2 * at.t, head.head_dim());
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float sum = ColumnSums<kColumns>::get(scratch, 16 * group + 8 * (e / 2) + at.g);
        dk[n][e] += sum * (e % 2 == 0 ? b.low : b.high);
      }
    }
  }

  // NaN and infinity of padded keys counted as a constant zero, which has no gradient.
  XLNET_FAST_DEVICE void stop_at_what_was_cleaned(Accumulator<D / 8>& x,
                                                  const Source& source) const {
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const int j = j0 + 16 * group + 8 * upper + at.g;
      if (head.state(j) != kPadded) continue;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        const Pair given = load_pair<Element>(source.at(j), 8 * n + 2 * at.t, head.head_dim());
        if (!is_finite(given.low)) x[n][2 * upper] = 0.0f;
        if (!is_finite(given.high)) x[n][2 * upper + 1] = 0.0f;
      }
    }
  }
  XLNET_FAST_DEVICE void write(const View& view, const View& memory, const Accumulator<D / 8>& x,
                               float factor) const {
    const int apart = static_cast<int>(keys.apart);
    const auto row_at = [&](int upper) -> char* {
      const int j = j0 + 16 * group + 8 * upper + at.g;
      const View& there = j < apart ? memory : view;
      if (j >= head.keys() || there.data == nullptr) return nullptr;
      return const_cast<char*>(address(there, head.b, j < apart ? j : j - apart, head.n));
    };
    write_rows<Element, D>(x, {factor, factor}, row_at, head.head_dim(), at.t);
  }
};

// One block for each tile of keys of each head.
template <class Shape, int kSharedBytes>
XLNET_FAST_KERNEL(kColumnThreads, 1)
rel_attention_backward_kv_kernel(XLNET_FAST_PARAMETER KeyCall key_call) {
  const AttentionCall& call = key_call.call;
  const int head_flat = block_index() / key_call.tiles, tile = block_index() % key_call.tiles;
  const int heads = static_cast<int>(call.keys.heads);
  KeyTile<Shape> key_tile(call, head_flat / heads, head_flat % heads, tile);
  key_tile.load_keys();
  for (int s = 0; s < call.streams; ++s) {
    if (call.stream[s].positions == nullptr) {
      key_tile.template add_rows<true>(call.stream[s]);
    } else {
      key_tile.template add_rows<false>(call.stream[s]);
    }
  }
  key_tile.finish(call.gradients, tile);
}

template <class Shape>
void launch_rel_attention_backward_kv(const AttentionCall& call, Stream stream) {
  const KeyCall key_call{
      call, static_cast<int>((call.keys.keys + Shape::kColumns - 1) / Shape::kColumns)};
  launch(&rel_attention_backward_kv_kernel<Shape, Shape::kSharedBytes>,
         {call.keys.batch * call.keys.heads * key_call.tiles, kColumnThreads, Shape::kSharedBytes},
         stream, key_call);
}

}  // namespace xlnet_fast::cuda
