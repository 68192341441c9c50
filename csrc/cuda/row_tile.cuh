// What the kernels share whose blocks are tiles of query rows: both forward kernels and that of dq.
//
// Keys and values of the next tile are copied while this one is computed. For rows in order, r lies
// in a ring of shared memory that the block's window moves along, one tile of new rows a step; a
// warp multiplies the part that its own 16 rows meet. Rows at positions of their own fetch their
// window through the warp (window.cuh).
#pragma once

#include "shapes.cuh"

namespace xlnet_fast::cuda {

struct RowCall {
  AttentionCall call;
  int tiles[2];  // of rows, of each stream; 0: the kernel is not for that stream
};

// The rows of a block: the stream and the head that they are of, and the first of them.
struct RowBlock {
  const AttentionStream& stream;
  Head head;
  int first_row;
};

template <class Shape>
XLNET_FAST_DEVICE RowBlock row_block(const RowCall& row_call) {
  const AttentionKeys& keys = row_call.call.keys;
  const int tiles = row_call.tiles[0] + row_call.tiles[1], heads = static_cast<int>(keys.heads);
  const int head_flat = block_index() / tiles, tile = block_index() % tiles;
  const bool second = tile >= row_call.tiles[0];
  const int tile_of_stream = second ? tile - row_call.tiles[0] : tile;
  return {row_call.call.stream[second],
          {keys, head_flat / heads, head_flat % heads},
          tile_of_stream * Shape::kRows};
}

// Whether k and v of padded keys are needed: rows may see their own key, padded or not.
XLNET_FAST_DEVICE bool sees_padded_keys(const RowBlock& block) {
  return block.stream.see_self && block.head.padded();
}

// --- tiles of keys ------------------------------------------------------------------------------

struct TileRange {
  int begin, end;
};

template <class Shape>
XLNET_FAST_DEVICE TileRange all_key_tiles(const Head& head) {
  return {0, (head.keys() + Shape::Keys - 1) / Shape::Keys};
}

// The tiles of keys that any row of the block may see.
template <class Shape, bool kInOrder>
XLNET_FAST_DEVICE TileRange key_tiles_in_view(const RowBlock& block, const Place& at) {
  const AttentionStream& stream = block.stream;
  const Head& head = block.head;
  int begin, end;
  unpadded_range<Shape::kWarps>(begin, end, head, Shape::kScratch, at);
  const int last = minimum(block.first_row + Shape::kRows, head.current()) - 1;
  const int low = kInOrder ? block.first_row : 0, top = kInOrder ? last : head.current() - 1;
  if (stream.see_self) {  // padded or not
    begin = minimum(begin, low + head.memory()), end = maximum(end, top + head.memory() + 1);
  }
  if (stream.causal) end = minimum(end, top + head.memory() + 1);
  if (stream.same_length) begin = maximum(begin, low);
  if (Limits::any(stream)) {
    const Limits limits = Limits::of(stream, head.keys());
    begin = maximum(begin, limits.begin(low, head.memory()));
    end = minimum(end, limits.end(top, head.memory()));
  }
  return {begin / Shape::Keys, (end + Shape::Keys - 1) / Shape::Keys};
}

// Begins to copy the keys and values of a tile. `step` counts tiles from the first of a block.
template <class Shape>
XLNET_FAST_DEVICE void begin_kv_copies(const Head& head, int tile, int step, bool load_padded,
                                       int thread) {
  copy_keys<Shape::D, Shape::Keys, Shape::kThreads>({Shape::k(step), Shape::v(step)},
                                                    {head.k(), head.v()}, head, tile * Shape::Keys,
                                                    load_padded, thread);
}

// Begins to copy `Count` rows of r to the ring, for rows in order: those from row `from` of the
// tile's window on.
template <class Shape, int Count>
XLNET_FAST_DEVICE void begin_r_copies(const Head& head, int first_row, int tile, int step, int from,
                                      int thread) {
  const int p0 = tile * Shape::Keys + from + head.current() - (first_row + Shape::kRows - 1);
  copy_rows<Shape::D, Count, Shape::kThreads>(
      {Shape::r()}, wrapped<Shape::kRing>(Shape::ring_row(step) + from), {head.r()},
      head.head_dim(), thread, [&](int w) { return head.row_of_r(p0 + w); });
}

// The warp's window of r for the keys of a tile.
template <class Shape, bool kInOrder>
XLNET_FAST_DEVICE auto warp_window_of_r(const Head& head, const Rows<kInOrder>& rows, int tile,
                                        int step, const Place& at) {
  // In the ring; computed for each window, for want of registers.
  const int first = Shape::ring_row(optimization_barrier(step)) + Shape::kRows - 16 * (at.warp + 1);
  return window_of_r<Shape::D, Shape::kRing>(head, rows, tile * Shape::Keys, Shape::r(), first, at);
}

// Zeros in place of NaN and infinity in padded keys and values that this thread has copied.
template <class Shape>
XLNET_FAST_DEVICE void clean_padded_kv(const Head& head, int tile, int step, int thread) {
  using Element = typename Shape::Element;
  constexpr int D = Shape::D, Keys = Shape::Keys, kThreads = Shape::kThreads;
  clean_padded_keys<Element, D, Keys, kThreads>(Shape::k(step), head, tile * Keys, thread);
  clean_padded_keys<Element, D, Keys, kThreads>(Shape::v(step), head, tile * Keys, thread);
}

// --- rows ---------------------------------------------------------------------------------------

// The numbers of a warp's rows in shared memory, each written by one thread of its row: a barrier,
// of the warp at least, belongs between the two.
template <class Shape>
XLNET_FAST_DEVICE void store_row_scalars(int which, const float (&x)[2], const Place& at) {
  if (at.t != 0) return;
#pragma unroll
  for (int upper = 0; upper < 2; ++upper) {
    store_shared<float>(Shape::row_scalar(which, 16 * at.warp + 8 * upper + at.g), x[upper]);
  }
}
template <class Shape>
XLNET_FAST_DEVICE void load_row_scalars(int which, float (&x)[2], const Place& at) {
#pragma unroll
  for (int upper = 0; upper < 2; ++upper) {
    x[upper] = load_shared<float>(Shape::row_scalar(which, 16 * at.warp + 8 * upper + at.g));
  }
}

// q + r_w_bias and q + r_r_bias as A operands, and row scalar 0: c, the segment score in units of
// log2.
template <class Shape, class TheRows>
XLNET_FAST_DEVICE void load_queries(typename Shape::Operand& q_w, typename Shape::Operand& q_r,
                                    const TheRows& rows, const Head& head, const Place& at) {
  using Element = typename Shape::Element;
  constexpr int D = Shape::D;
  const AttentionKeys& keys = head.all;
  const auto q_row = [&](int upper) { return rows.row(rows.stream.q, head.n, upper); };
  load_operand_a<Element, D>(q_w, q_row, head.bias(keys.r_w_bias), head.head_dim(), at);
  load_operand_a<Element, D>(q_r, q_row, head.bias(keys.r_r_bias), head.head_dim(), at);
  float c[2];
  segment_scores<Element, D>(c, head, q_row, keys.scale * kLog2E, at);
  store_row_scalars<Shape>(0, c, at);
}

// A number of each row that the block has, [b, n, i].
template <class TheRows>
XLNET_FAST_DEVICE void write_row_scalars(float* table, const float (&x)[2], const TheRows& rows,
                                         const Head& head, const Place& at) {
  if (at.t != 0) return;
#pragma unroll
  for (int upper = 0; upper < 2; ++upper) {
    if (!rows.exists(upper)) continue;
    store(table + head.flat() * rows.stream.rows + rows.index(upper), x[upper]);
  }
}

// An accumulator times a factor a row, to a tensor of the shape of q.
template <class Element, int D, class TheRows>
XLNET_FAST_DEVICE void write_result(const View& view, const Accumulator<D / 8>& x,
                                    const float (&factor)[2], const TheRows& rows, const Head& head,
                                    const Place& at) {
  const auto row_at = [&](int upper) -> char* {
    if (!rows.exists(upper)) return nullptr;
    return const_cast<char*>(address(view, head.b, rows.index(upper), head.n));
  };
  write_rows<Element, D>(x, factor, row_at, head.head_dim(), at.t);
}

// --- launch -------------------------------------------------------------------------------------

// One block for each tile of rows, of every stream that the kernel is for, of each head.
template <class Shape, class IsFor>
void launch_row_tiles(void (*kernel)(RowCall), const AttentionCall& call, Stream stream,
                      const IsFor& is_for) {
  RowCall row_call{call, {0, 0}};
  for (int s = 0; s < call.streams; ++s) {
    if (!is_for(call.stream[s])) continue;
    row_call.tiles[s] = static_cast<int>((call.stream[s].rows + Shape::kRows - 1) / Shape::kRows);
  }
  const int64_t tiles = row_call.tiles[0] + row_call.tiles[1];
  if (tiles == 0) return;
  launch(kernel, {call.keys.batch * call.keys.heads * tiles, Shape::kThreads, Shape::kSharedBytes},
         stream, row_call);
}

}  // namespace xlnet_fast::cuda
