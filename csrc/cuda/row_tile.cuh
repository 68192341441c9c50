// A block that owns a tile of query rows and goes over the keys: what the forward kernel and the
// backward kernel of dq have in common.
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
  int tiles[2];  // of rows, of each stream
};

template <class Shape, bool kInOrder>
struct RowTile {
  using Element = typename Shape::Element;
  using Side = typename Shape::Side;
  static constexpr int D = Shape::D, Keys = Shape::Keys, kThreads = Shape::kThreads;
  using Scores = Result<Keys / 8>;

  const Place at = place();
  const AttentionKeys& keys;
  const AttentionStream& stream;
  const Head head;
  const int first_row;  // of the block
  const Rows<kInOrder> rows;
  bool padded_too;  // whether k and v of padded keys are needed

  Side q_w, q_r;

  XLNET_FAST_DEVICE RowTile(const AttentionCall& call, const AttentionStream& its_stream, int b,
                            int n, int tile)
      : keys(call.keys),
        stream(its_stream),
        head{call.keys, b, n},
        first_row(tile * Shape::kRows),
        rows(its_stream, head, first_row + 16 * at.warp, at),
        padded_too(its_stream.see_self && head.padded()),
        q_w(Shape::kSides, at),
        q_r(Shape::kSides + Side::kBytes, at) {
    const auto q_row = [&](int upper) { return rows.row(stream.q, head.n, upper); };
    load_left<Element, D>(q_w, q_row, head.bias(keys.r_w_bias), head.head_dim(), at);
    load_left<Element, D>(q_r, q_row, head.bias(keys.r_r_bias), head.head_dim(), at);
    float c[2];
    segment_scores<Element, D>(c, head, q_row, keys.scale * kLog2E, at);
    park_numbers(0, c);
  }

  // The row's numbers in shared memory; 0 is c, the segment score in units of log2. A barrier of
  // the warp belongs between the two.
  XLNET_FAST_DEVICE uint32_t number_at(int which, int upper) const {
    const int row = 16 * at.warp + 8 * upper + at.g;
    return Shape::kNumbers + static_cast<uint32_t>(4 * (which * Shape::kRows + row));
  }
  XLNET_FAST_DEVICE void park_numbers(int which, const float (&x)[2]) const {
    if (at.t != 0) return;
    store_shared<float>(number_at(which, 0), x[0]), store_shared<float>(number_at(which, 1), x[1]);
  }
  XLNET_FAST_DEVICE void get_numbers(int which, float (&x)[2]) const {
    x[0] = load_shared<float>(number_at(which, 0)), x[1] = load_shared<float>(number_at(which, 1));
  }

  XLNET_FAST_DEVICE static Tile<D> k(int step) {
    return {static_cast<uint32_t>(step % 2) * Shape::kTileBytes};
  }
  XLNET_FAST_DEVICE static Tile<D> v(int step) {
    return {static_cast<uint32_t>(2 + step % 2) * Shape::kTileBytes};
  }
  XLNET_FAST_DEVICE static KeyFacts<Keys> facts(int step) {
    return {Shape::kFacts + static_cast<uint32_t>(step % 2 * KeyFacts<Keys>::kBytes)};
  }
  XLNET_FAST_DEVICE Strip<Keys> strip() const {
    return {Shape::kStrips + static_cast<uint32_t>(at.warp * Strip<Keys>::kBytes)};
  }

  // The tiles of keys that any row of the block may see; all of them where `all`.
  XLNET_FAST_DEVICE void tiles_of_keys(int& begin, int& end, bool all) const {
    unpadded_range<Shape::kWarps>(begin, end, head, Shape::kScratch, at);
    const int last = least(first_row + Shape::kRows, head.current()) - 1;
    const int low = kInOrder ? first_row : 0, top = kInOrder ? last : head.current() - 1;
    if (stream.see_self) {  // padded or not
      begin = least(begin, low + head.memory()), end = greatest(end, top + head.memory() + 1);
    }
    if (stream.causal) end = least(end, top + head.memory() + 1);
    if (stream.same_length) begin = greatest(begin, low);
    if (Limits::any(stream)) {
      const Limits limits = Limits::of(stream, head.keys());
      begin = greatest(begin, limits.begin(low, head.memory()));
      end = least(end, limits.end(top, head.memory()));
    }
    if (all) begin = 0, end = head.keys();
    begin = begin / Keys, end = (end + Keys - 1) / Keys;
  }

  // Begins to copy a tile of keys and values, and for rows in order `Count` rows of the ring, those
  // from window row `from` of the tile on. `step` counts tiles from the first.
  template <int Count>
  XLNET_FAST_DEVICE void begin_copies(int tile, int step, int from) const {
    const int j0 = tile * Keys;
    const Head here = head.anew();
    const int thread = opaque(at.thread);  // or addresses of all tiles would be kept
    copy_keys<D, Keys, kThreads>({k(step), v(step)}, {here.k(), here.v()}, here, j0, padded_too,
                                 thread);
    if constexpr (kInOrder) {
      const int p0 = j0 + from + head.current() - (first_row + Shape::kRows - 1);
      copy_rows<D, Count, kThreads>(
          {Tile<D>{Shape::kTable}}, wrapped<Shape::kRing>(ring_row(step) + from), {here.r()},
          head.head_dim(), thread, [&](int w) { return here.row_of_r(p0 + w); });
    }
    commit_copies();
  }

  // Where a step's window begins in the ring. What a step copies is a whole part of the ring.
  XLNET_FAST_DEVICE static int ring_row(int step) {
    static_assert(Shape::kRing % Keys == 0 && Shape::kRows % Keys == 0);
    return static_cast<int>(static_cast<uint32_t>(step * Keys) % Shape::kRing);
  }

  // Calls use(window, shift) with the warp's window of r.
  template <class Use>
  XLNET_FAST_DEVICE void with_window(int j0, int step, const Use& use) const {
    const int mine = Shape::kRows - 16 * (at.warp + 1);  // window row of the warp's first
    with_window_of_r<D, Shape::kRing>(head, rows, j0, Tile<D>{Shape::kTable}, ring_row(step) + mine,
                                      at, use);
  }

  // Goes over tiles begin .. end - 1 and calls compute(scores, sight, kept, step, j0) with the
  // products of content and position, neither scaled nor hidden yet, and with what hides them and
  // what dropout keeps: a few words, made before the scores need the registers.
  template <class Compute>
  XLNET_FAST_DEVICE void for_each_tile(int begin, int end, const Compute& compute) const {
    if (begin >= end) return;
    block_barrier();  // whatever was in shared memory has been read
    begin_copies<Shape::kRows + Keys>(begin, 0, 0);
    if (at.thread < Keys) {
      facts(0).write(at.thread, KeyFacts<Keys>::look_up(head, begin * Keys + at.thread));
    }
    for (int tile = begin; tile < end; ++tile) {
      const int step = tile - begin, j0 = tile * Keys;
      const bool more = tile + 1 < end;
      wait_copies<0>();
      if (padded_too) {
        clean_padded_keys<Element, D, Keys, kThreads>(k(step), head, j0, at.thread);
        clean_padded_keys<Element, D, Keys, kThreads>(v(step), head, j0, at.thread);
      }
      block_barrier();
      if (kInOrder && more) begin_copies<Keys>(tile + 1, step + 1, Shape::kRows);
      typename KeyFacts<Keys>::One next{};
      if (more && at.thread < Keys) next = KeyFacts<Keys>::look_up(head, j0 + Keys + at.thread);
      const auto sight = sight_of<Keys / 8>(rows, head.anew(), facts(step), j0, at);
      const uint32_t kept = kept_scores<Keys / 8>(rows, head, j0, at);
      Scores scores;
      with_window(j0, step, [&](const auto& window, const auto& shift) {
        moved_products<Element, D, Keys>(scores, q_r.in_registers(at), window, strip(), shift, at,
                                         [](const Result<2>&, int) {});
      });
      add_product_transposed<Element, D, Keys / 8>(scores, q_w, k(step), 0, at.lane);
      compute(scores, sight, kept, step, j0);
      // Rows at positions of their own wait for copies of theirs: none may be before them.
      if (!kInOrder && more) begin_copies<Keys>(tile + 1, step + 1, Shape::kRows);
      if (more && at.thread < Keys) facts(step + 1).write(at.thread, next);
    }
  }

  // A number of each row that the block has, [b, n, i].
  XLNET_FAST_DEVICE void store_of_rows(float* table, const float (&x)[2]) const {
    if (at.t != 0) return;
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      if (rows.exists(upper))
        store(table + head.flat() * stream.rows + rows.index(upper), x[upper]);
    }
  }

  // A result times a factor a row, to a tensor of the shape of q.
  XLNET_FAST_DEVICE void write_result(const View& view, const Result<D / 8>& x,
                                      const float (&factor)[2]) const {
    const auto row_at = [&](int upper) -> char* {
      if (!rows.exists(upper)) return nullptr;
      return const_cast<char*>(address(view, head.b, rows.index(upper), head.n));
    };
    write_rows<Element, D>(x, factor, row_at, head.head_dim(), at.t);
  }
};

// Does what a kernel of row tiles does with the block's: attend() and finish().
template <class Shape, template <class, bool> class TheTile>
XLNET_FAST_DEVICE void run_row_tile(const RowCall& row_call) {
  const AttentionCall& call = row_call.call;
  const int tiles = row_call.tiles[0] + row_call.tiles[1];
  const int head_flat = block_index() / tiles, heads = static_cast<int>(call.keys.heads);
  const int tile = block_index() % tiles, b = head_flat / heads, n = head_flat % heads;
  const bool second = tile >= row_call.tiles[0];
  const AttentionStream& stream = call.stream[second];
  const int mine = second ? tile - row_call.tiles[0] : tile;
  const auto run = [](auto&& rows) { rows.attend(), rows.finish(); };
  if (stream.positions == nullptr) {
    run(TheTile<Shape, true>(call, stream, b, n, mine));
  } else {
    run(TheTile<Shape, false>(call, stream, b, n, mine));
  }
}

// One block for each tile of rows, of both streams, of each head.
template <class Shape>
void launch_row_tiles(void (*kernel)(RowCall), const AttentionCall& call, Stream stream) {
  RowCall row_call{call, {0, 0}};
  for (int s = 0; s < call.streams; ++s) {
    row_call.tiles[s] = static_cast<int>((call.stream[s].rows + Shape::kRows - 1) / Shape::kRows);
  }
  const int64_t tiles = row_call.tiles[0] + row_call.tiles[1];
  launch(kernel, {call.keys.batch * call.keys.heads * tiles, Shape::kThreads, Shape::kSharedBytes},
         stream, row_call);
}

}  // namespace xlnet_fast::cuda
