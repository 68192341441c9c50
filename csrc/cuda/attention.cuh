// What the four attention kernels share: the head, the rows and the keys of a block, and dropout.
//
// Letters as in docs/maths.md. A block has a tile of query rows, of which each warp has 16, and
// meets tiles of keys. Scores are in units of log2.
#pragma once

#include "../params.h"
#include "limits.cuh"
#include "philox.cuh"
#include "tiles.cuh"

namespace xlnet_fast::cuda {

enum KeyState : int { kSeen = 0, kPadded = 1, kNoKey = 2 };

// --- one head -----------------------------------------------------------------------------------

// Indices are not negative, which makes their products with 64 bits shorter.
XLNET_FAST_DEVICE const char* address(const View& view, int i0, int i1, int i2) {
  const auto u0 = static_cast<uint32_t>(i0), u1 = static_cast<uint32_t>(i1);
  const auto u2 = static_cast<uint32_t>(i2);
  return view.data + 2 * (u0 * view.stride[0] + u1 * view.stride[1] + u2 * view.stride[2]);
}

// One batch element and head of a call. Addresses are computed where they are used, from the call's
// parameters, which lie in constant memory: kept in registers they would crowd out the tiles.
struct Head {
  const AttentionKeys& all;
  int b, n;
  int group;  // of r: a quotient, so never computed a second time

  XLNET_FAST_DEVICE Head(const AttentionKeys& its_keys, int its_b, int its_n)
      : Head(its_keys, its_b, its_n, its_b / static_cast<int>(its_keys.batch / its_keys.groups)) {}

  // The same head behind an optimization barrier: addresses made of it are rematerialized, where
  // the compiler would keep those of earlier uses in registers.
  XLNET_FAST_DEVICE Head rematerialized() const {
    return {all, optimization_barrier(b), optimization_barrier(n), optimization_barrier(group)};
  }

  XLNET_FAST_DEVICE int keys() const { return static_cast<int>(all.keys); }
  XLNET_FAST_DEVICE int memory() const { return static_cast<int>(all.memory); }
  XLNET_FAST_DEVICE int current() const { return keys() - memory(); }
  XLNET_FAST_DEVICE int head_dim() const { return static_cast<int>(all.head_dim); }
  XLNET_FAST_DEVICE int flat() const { return b * static_cast<int>(all.heads) + n; }
  XLNET_FAST_DEVICE Source k() const { return of_keys(all.k, all.k_memory); }
  XLNET_FAST_DEVICE Source v() const { return of_keys(all.v, all.v_memory); }
  XLNET_FAST_DEVICE Source r() const { return {address(all.r, group, 0, n), 2 * all.r.stride[1]}; }
  // The row of r for index p, or a negative number where there is none, or where no key has that
  // index: r may be longer.
  XLNET_FAST_DEVICE int row_of_r(int p) const {
    const int row = p - static_cast<int>(all.table_start);
    return row < static_cast<int>(all.table) && p < keys() + current() ? row : -1;
  }
  XLNET_FAST_DEVICE const char* bias(const View& view) const { return address(view, n, 0, 0); }
  XLNET_FAST_DEVICE const char* seg_embed(int which) const {
    return address(all.seg_embed, which, n, 0);
  }
  XLNET_FAST_DEVICE bool segmented() const { return all.seg_embed.data != nullptr; }
  XLNET_FAST_DEVICE bool padded() const { return all.key_padding != nullptr; }

  XLNET_FAST_DEVICE int state(int j) const {
    if (j < 0 || j >= keys()) return kNoKey;
    return padded() && load(all.key_padding + b * all.keys + j) != 0 ? kPadded : kSeen;
  }
  XLNET_FAST_DEVICE int segment(int j) const { return load(all.segments + b * all.keys + j); }
  XLNET_FAST_DEVICE int rank(int j) const { return load(all.rank_k + b * all.keys + j); }

 private:
  XLNET_FAST_DEVICE Head(const AttentionKeys& its_keys, int its_b, int its_n, int its_group)
      : all(its_keys), b(its_b), n(its_n), group(its_group) {}
  XLNET_FAST_DEVICE Source of_keys(const View& x, const View& memory) const {
    return {address(x, b, 0, n), 2 * x.stride[1], address(memory, b, 0, n), 2 * memory.stride[1],
            static_cast<int>(all.apart)};
  }
};

// --- rows ---------------------------------------------------------------------------------------

// The two rows of a warp that a thread holds, g and g + 8: `upper` is 0 and 1. An absent row has
// the place of a present one, so its scores are finite; nothing of it is written.
template <bool kInOrder>
struct Rows {
  const AttentionStream& stream;
  int b;
  int first, g;  // the warp's first row
  int low, top;  // of the positions of the warp; in order, also of rows that do not exist
  int places[2];
  bool absent[2];

  XLNET_FAST_DEVICE Rows(const AttentionStream& its_stream, const Head& head, int first_row,
                         const Place& at)
      : stream(its_stream), b(head.b), first(first_row), g(at.g) {
    low = first, top = first + 15;
    if constexpr (!kInOrder) look_up_positions(head);
  }

  XLNET_FAST_DEVICE int index(int upper) const { return first + 8 * upper + g; }
  XLNET_FAST_DEVICE int position(int upper) const {
    if constexpr (kInOrder) return index(upper);
    return places[upper];
  }
  XLNET_FAST_DEVICE bool exists(int upper) const {
    return index(upper) < static_cast<int>(stream.rows);
  }
  XLNET_FAST_DEVICE bool present(int upper) const {
    if constexpr (kInOrder) return exists(upper);
    return !absent[upper];
  }
  // The row of segments, ranks and bits, counted over the whole batch. Computed for every tile of
  // keys, for want of registers.
  XLNET_FAST_DEVICE int64_t row_in_tables(int upper) const {
    return optimization_barrier(b) * stream.table + row_in_table(upper);
  }
  XLNET_FAST_DEVICE int row_in_table(int upper) const {
    const int row = stream.by_position ? position(upper) : index(upper);
    return minimum(row, static_cast<int>(stream.table) - 1);
  }
  // What such a table has for a row.
  XLNET_FAST_DEVICE int number(const int32_t* table, int upper) const {
    return load(table + row_in_tables(upper));
  }
  // Rows of a tensor of the shape of q, null for rows that are not present.
  XLNET_FAST_DEVICE const char* row(const View& view, int n, int upper) const {
    return present(upper) ? address(view, b, index(upper), n) : nullptr;
  }

 private:
  XLNET_FAST_DEVICE void look_up_positions(const Head& head) {
    low = INT32_MAX, top = 0;
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const int64_t at = b * stream.rows + index(upper);
      const int given = exists(upper) ? load(stream.positions + at) : -1;
      places[upper] = minimum(given, head.current() - 1);
      absent[upper] = given < 0;
      if (given >= 0) low = minimum(low, places[upper]);
      top = maximum(top, places[upper]);
    }
#pragma unroll
    for (int step = 4; step < kWarpSize; step *= 2) {
      low = minimum(low, shuffle_xor(low, step)), top = maximum(top, shuffle_xor(top, step));
    }
    low = minimum(low, top);
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      if (!present(upper)) places[upper] = top;
    }
  }
};

// --- keys ---------------------------------------------------------------------------------------

// What masks and segments ask of a key.
struct KeyEntry {
  int state, segment, rank;
};

XLNET_FAST_DEVICE KeyEntry look_up_key(const Head& head, int j) {
  KeyEntry entry{head.state(j), 0, 0};
  if (entry.state != kNoKey) {
    if (head.segmented()) entry.segment = head.segment(j);
    if (head.all.rank_k != nullptr) entry.rank = head.rank(j);
  }
  return entry;
}

// The same of `Keys` keys in shared memory.
template <int Keys>
struct KeyMetadata {
  static constexpr int kBytes = 3 * 4 * Keys;

  uint32_t base;

  XLNET_FAST_DEVICE void write(int r, const KeyEntry& entry) const {
    store_shared<int>(base + 4 * r, entry.state);
    store_shared<int>(base + 4 * (Keys + r), entry.segment);
    store_shared<int>(base + 4 * (2 * Keys + r), entry.rank);
  }
  XLNET_FAST_DEVICE int state(int r) const { return load_shared<int>(base + 4 * r); }
  XLNET_FAST_DEVICE int segment(int r) const { return load_shared<int>(base + 4 * (Keys + r)); }
  XLNET_FAST_DEVICE int rank(int r) const { return load_shared<int>(base + 4 * (2 * Keys + r)); }
};

// The same from global memory, for keys that lie anywhere: entry j is that of key j.
struct KeyMetadataInGlobal {
  const Head& head;
  XLNET_FAST_DEVICE int state(int j) const { return head.state(j); }
  XLNET_FAST_DEVICE int segment(int j) const {
    return head.state(j) == kNoKey ? 0 : head.segment(j);
  }
  XLNET_FAST_DEVICE int rank(int j) const { return head.state(j) == kNoKey ? 0 : head.rank(j); }
};

// First of the numbers below `count` that `holds`, and one past the last; (count, 0) without any.
// For the whole block; `scratch` is 8 bytes of shared memory a warp, free again after the next
// barrier.
template <int Warps, class Holds>
XLNET_FAST_DEVICE void range_where(int& begin, int& end, int count, const Holds& holds,
                                   uint32_t scratch, const Place& at) {
  begin = count, end = 0;
  for (int x = at.thread; x < count; x += Warps * kWarpSize) {
    if (!holds(x)) continue;
    begin = minimum(begin, x), end = x + 1;
  }
#pragma unroll
  for (int step = 1; step < kWarpSize; step *= 2) {
    begin = minimum(begin, shuffle_xor(begin, step));
    end = maximum(end, shuffle_xor(end, step));
  }
  if (at.lane == 0) {
    store_shared<int>(scratch + 8 * at.warp, begin);
    store_shared<int>(scratch + 8 * at.warp + 4, end);
  }
  block_barrier();
#pragma unroll
  for (int warp = 0; warp < Warps; ++warp) {
    begin = minimum(begin, load_shared<int>(scratch + 8 * warp));
    end = maximum(end, load_shared<int>(scratch + 8 * warp + 4));
  }
}

// The keys that are not padded.
template <int Warps>
XLNET_FAST_DEVICE void unpadded_range(int& begin, int& end, const Head& head, uint32_t scratch,
                                      const Place& at) {
  begin = 0, end = head.keys();
  if (!head.padded()) return;
  const auto seen = [&](int j) { return head.state(j) == kSeen; };
  range_where<Warps>(begin, end, head.keys(), seen, scratch, at);
}

// The rows that see no key, or are absent.
template <int Warps>
XLNET_FAST_DEVICE void uniform_range(int& begin, int& end, const Head& head,
                                     const AttentionStream& stream, uint32_t scratch,
                                     const Place& at) {
  const int count = static_cast<int>(stream.rows);
  const float* stats = stream.stats + static_cast<int64_t>(head.flat()) * count;
  const auto uniform = [&](int i) { return load(stats + i) == infinity(); };
  range_where<Warps>(begin, end, count, uniform, scratch, at);
}

// Begins to copy `Count` keys, values, or both from j0 on. Padded ones are zero unless
// `padded_too`.
template <int D, int Count, int Threads, int N>
XLNET_FAST_DEVICE void copy_keys(const Tile<D> (&tiles)[N], const Source (&sources)[N],
                                 const Head& head, int j0, bool padded_too, int thread) {
  copy_rows<D, Count, Threads>(tiles, 0, sources, head.head_dim(), thread, [&](int r) {
    const int state = head.state(j0 + r);
    return state == kSeen || (state == kPadded && padded_too) ? j0 + r : -1;
  });
}

XLNET_FAST_DEVICE bool is_finite(float x) { return x - x == 0.0f; }

// Makes NaN and infinity in padded keys zero: each thread in what it copied itself and has waited
// for, so before the barrier that shows the copies to the others.
template <class Element, int D, int Count, int Threads>
XLNET_FAST_DEVICE void clean_padded_keys(const Tile<D>& tile, const Head& head, int j0,
                                         int thread) {
  if (!head.padded()) return;
  constexpr int kPieces = Tile<D>::kPieces;
  for (int piece = thread; piece < Count * kPieces; piece += Threads) {
    const int r = piece / kPieces;
    if (head.state(j0 + r) != kPadded) continue;
    const uint32_t offset = tile.at(r, piece % kPieces);
    Chunk chunk = load_shared<Chunk>(offset);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const Pair x = unpack(Element{}, chunk.word[w]);
      const float low = is_finite(x.low) ? x.low : 0.0f;
      const float high = is_finite(x.high) ? x.high : 0.0f;
      chunk.word[w] = pack(Element{}, low, high);
    }
    store_shared(offset, chunk);
  }
}

// --- scores -------------------------------------------------------------------------------------

// Whether dropout keeps a score: bit 4 * n + e of `dropout_keep_mask`.
XLNET_FAST_DEVICE bool is_kept(uint32_t keep, int n, int e) {
  return (keep >> (4 * n + e) & 1) != 0;
}

// Calls use(n, e) for every score that a thread holds.
template <int Tiles, class Use>
XLNET_FAST_DEVICE void for_each_score(const Use& use) {
#pragma unroll
  for (int n = 0; n < Tiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) use(n, e);
  }
}

// c_i of the rows in units of log2: (q_i + r_s_bias) . (seg_embed_1 - seg_embed_0), zero without
// segments. row_at(upper) is a row of q or null.
template <class Element, int D, class RowAt>
XLNET_FAST_DEVICE void segment_scores(float (&c)[2], const Head& head, const RowAt& row_at,
                                      float scale, const Place& at) {
  c[0] = c[1] = 0.0f;
  if (!head.segmented()) return;
#pragma unroll
  for (int n = 0; n < D / 8; ++n) {
    const int d = 8 * n + 2 * at.t;
    const Pair bias = load_pair<Element>(head.bias(head.all.r_s_bias), d, head.head_dim());
    const Pair same = load_pair<Element>(head.seg_embed(0), d, head.head_dim());
    const Pair other = load_pair<Element>(head.seg_embed(1), d, head.head_dim());
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const Pair q = load_pair<Element>(row_at(upper), d, head.head_dim());
      c[upper] += (q.low + bias.low) * (other.low - same.low) +
                  (q.high + bias.high) * (other.high - same.high);
    }
  }
#pragma unroll
  for (int upper = 0; upper < 2; ++upper) c[upper] = row_sum(c[upper]) * scale;
}

// Rows of q plus a bias, rounded, as the A operand of products. row_at(upper) may be null.
template <class Element, int D, class Operand, class RowAt>
XLNET_FAST_DEVICE void load_operand_a(Operand& operand, const RowAt& row_at, const char* bias,
                                      int head_dim, const Place& at) {
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
    uint32_t a[4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int d = 16 * step + 8 * half + 2 * at.t;
      const Pair b = load_pair<Element>(bias, d, head_dim);
#pragma unroll
      for (int upper = 0; upper < 2; ++upper) {
        const Pair x = load_pair<Element>(row_at(upper), d, head_dim);
        a[2 * half + upper] = pack(Element{}, x.low + b.low, x.high + b.high);
      }
    }
    operand.set(step, a);
  }
}

// --- dropout -------------------------------------------------------------------------------------

// Which of the scores that a thread holds dropout keeps, bit 4 * n + e, for keys from j0 on, a
// multiple of 4. Two lanes share groups of four keys: each asks for one row.
template <int Tiles, class TheRows>
XLNET_FAST_DEVICE uint32_t dropout_keep_mask(const TheRows& rows, const Head& head, int j0,
                                             const Place& at) {
  if (!head.all.dropout) return 0xffffffffu;
  const PhiloxKey key = philox_key(rows.stream.seed_at);
  const bool odd = at.t % 2 != 0;
  const auto row = static_cast<uint32_t>(rows.index(at.t % 2));
  const auto flat = static_cast<uint32_t>(head.flat());
  uint32_t keep = 0;
#pragma unroll
  for (int n = 0; n < Tiles; ++n) {
    const auto group = static_cast<uint32_t>(j0 / 4 + 2 * n + at.t / 2);
    const auto mine = static_cast<int>(keep_bits(key, group, row, flat, head.all.keep_from));
    const int other = shuffle_xor(mine, 1);
    const int low = odd ? other : mine, high = odd ? mine : other;
    const int shift = odd ? 2 : 0;
    keep |= static_cast<uint32_t>((low >> shift & 3) | (high >> shift & 3) << 2) << (4 * n);
  }
  return keep;
}

}  // namespace xlnet_fast::cuda
