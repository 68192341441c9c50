// One row of masked_softmax, which a warp owns: reading its scores a tile at a time, what hides its
// keys, its dropout, and writing rows back. What is computed is in masked_softmax.cuh.
#pragma once

#include <cmath>

#include "../params.h"
#include "elements.cuh"
#include "limits.cuh"
#include "philox.cuh"
#include "tiles.cuh"

namespace xlnet_fast::cuda {

constexpr float kHiddenExponent = -1e30f * kLog2E;
constexpr float kLowestExponent = -3e38f;  // not -inf: differences of two must not be NaN

// What a lane holds of a tile of a row: `Pieces` pieces of neighbouring keys; the pieces of a
// warp's lanes follow each other. Element e of piece v has number v * kWidth + e, which is also its
// bit in the sets of keys.
template <class Element, int Pieces>
struct SoftmaxTile {
  static constexpr int kWidth = kPiece<Element>;
  static constexpr int kElements = Pieces * kWidth;  // of a lane
  static constexpr int kKeys = kElements * kWarpSize;
  static_assert(kElements <= 32, "a set of keys is one word");

  int lane;
  int first = 0;          // its first key
  float x[kElements];     // scores before the scale, then 2^(exponent - most), then gradients
  uint32_t seen, hidden;  // keys the row sees; keys it must not see. None behind the last key
  uint32_t differ;        // keys of another segment

  XLNET_FAST_DEVICE explicit SoftmaxTile(int its_lane) : lane(its_lane) {}

  XLNET_FAST_DEVICE int key(int piece) const { return first + (piece * kWarpSize + lane) * kWidth; }

  // The largest exponent among a lane's keys; `factor` makes a score's exponent.
  XLNET_FAST_DEVICE float highest(float factor) const {
    float most = hidden != 0 ? kHiddenExponent : kLowestExponent;
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      most = maximum((seen >> e & 1) != 0 ? x[e] * factor : most, most);
    }
    return most;
  }

  // Makes 2^(exponent - most) of the scores, zero behind the last key, and returns a lane's sum.
  // Exponents less the largest are formed by one fused multiply-add, so that those that count, near
  // the largest, are rounded at their own size and not at its.
  XLNET_FAST_DEVICE float exponentiate(float factor, float most) {
    const float of_hidden = exp2_approx(kHiddenExponent - most);
    float total = 0.0f;
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const float other = (hidden >> e & 1) != 0 ? of_hidden : 0.0f;
      x[e] = (seen >> e & 1) != 0 ? exp2_approx(fmaf(x[e], factor, -most)) : other;
      total += x[e];
    }
    return total;
  }
};

// A tile of the gradient of the row's output, and which keys dropout kept.
template <class Element, int Pieces>
struct UpstreamTile {
  using Tile = SoftmaxTile<Element, Pieces>;
  Chunk piece[Pieces];
  uint32_t kept;
  float keep_scale;

  // Gradients of the probabilities of piece v before dropout.
  XLNET_FAST_DEVICE void decode(int v, float (&d_probability)[Tile::kWidth]) const {
    decode_piece(Element{}, piece[v], d_probability);
#pragma unroll
    for (int e = 0; e < Tile::kWidth; ++e) {
      const bool keeps = (kept >> (v * Tile::kWidth + e) & 1) != 0;
      d_probability[e] = keeps ? d_probability[e] * keep_scale : 0.0f;
    }
  }
};

template <class Element>
class SoftmaxRow {
 public:
  using Type = Bits<Element>;
  static constexpr int kWidth = kPiece<Element>;

  XLNET_FAST_DEVICE SoftmaxRow(const MaskedSoftmaxParams& p, uint32_t flat)
      : p_(p), keys_(static_cast<int>(p.keys)) {
    const auto rows = static_cast<uint32_t>(p.rows), heads = static_cast<uint32_t>(p.heads);
    head_flat_ = flat / rows;
    i_ = static_cast<int>(flat - head_flat_ * rows);
    b_ = static_cast<int>(head_flat_ / heads);
    n_ = static_cast<int>(head_flat_ - static_cast<uint32_t>(b_) * heads);
    const int64_t table_row = b_ * p.rows + i_;
    // Within 30 bits, so that its sums with the number of a key fit 32.
    constexpr int kFar = (1 << 30) - 1;
    const int given = p.positions == nullptr ? i_ : load(p.positions + table_row);
    position_ = minimum(maximum(given, -kFar), kFar);
    if (Limits::any(p)) find_window();
    if (p.rank_q != nullptr) rank_ = load(p.rank_q + table_row);
    if (p.dropout) seed_ = philox_key(p.seed_at);
    if (p.segment_scores.data == nullptr) return;
    segment_ = load(p.segments_q + table_row);
    segment_score_ = decode(Element{}, load(begin_of(p.segment_scores, 0) + i_));
  }

  // Fills a tile with the sums of the scores, and the sets of its keys.
  template <int Pieces>
  XLNET_FAST_DEVICE void read(SoftmaxTile<Element, Pieces>& tile) const {
    const Run<Type> scores{begin_of(p_.scores, i_), 0, keys_};
    const Run<Type> positions = position_run(p_.position_scores);
    Chunk piece[Pieces];
#pragma unroll
    for (int v = 0; v < Pieces; ++v) piece[v] = load_piece(scores, tile.key(v));
    tile.seen = tile.hidden = tile.differ = 0;
#pragma unroll
    for (int v = 0; v < Pieces; ++v) {
      const int key = tile.key(v);
      float* x = tile.x + v * kWidth;
      decode_piece(Element{}, piece[v], x);
      if (p_.position_scores.data != nullptr) {
        float term[kWidth];
        decode_piece(Element{}, load_piece(positions, key), term);
#pragma unroll
        for (int e = 0; e < kWidth; ++e) x[e] += term[e];
      }
      if (p_.segments_k != nullptr) {
        const uint32_t differ = differing_keys(key);
#pragma unroll
        for (int e = 0; e < kWidth; ++e) x[e] += (differ >> e & 1) != 0 ? segment_score_ : 0.0f;
        tile.differ |= differ << v * kWidth;
      }
      const uint32_t there = low_bits(keys_ - key), hides = hidden_keys(key);
      tile.seen |= (there & ~hides) << v * kWidth;
      tile.hidden |= (there & hides) << v * kWidth;
    }
  }

  template <int Pieces>
  XLNET_FAST_DEVICE void read_upstream(UpstreamTile<Element, Pieces>& upstream,
                                       const SoftmaxTile<Element, Pieces>& tile) const {
    const Run<Type> d_out{begin_of(p_.d_out, i_), 0, keys_};
#pragma unroll
    for (int v = 0; v < Pieces; ++v) upstream.piece[v] = load_piece(d_out, tile.key(v));
    upstream.kept = kept_keys(tile);
    upstream.keep_scale = keep_scale();
  }

  // The keys of a tile that dropout keeps, all without it.
  template <int Pieces>
  XLNET_FAST_DEVICE uint32_t kept_keys(const SoftmaxTile<Element, Pieces>& tile) const {
    if (!p_.dropout) return ~uint32_t{0};
    uint32_t kept = 0;
#pragma unroll
    for (int e = 0; e < Pieces * kWidth; e += kPhiloxGroup) {
      const int key = tile.key(e / kWidth) + e % kWidth;
      const auto group = static_cast<uint32_t>(key / kPhiloxGroup);
      kept |= keep_bits(seed_, group, static_cast<uint32_t>(i_), head_flat_, p_.keep_from) << e;
    }
    return kept;
  }
  XLNET_FAST_DEVICE float keep_scale() const { return p_.dropout ? p_.keep_scale : 1.0f; }

  // Brings a tile's x to this warp's part of shared memory, where its lanes find it as elements.
  template <int Pieces>
  XLNET_FAST_DEVICE void stage(uint32_t shared, const SoftmaxTile<Element, Pieces>& tile) const {
    warp_barrier();  // the tile before has been written
#pragma unroll
    for (int v = 0; v < Pieces; ++v) {
      store_shared(shared + kPieceBytes * static_cast<uint32_t>(v * kWarpSize + tile.lane),
                   encode_piece(Element{}, tile.x + v * kWidth));
    }
    warp_barrier();
  }

  // Writes the staged tile to this row of a table (b, n, i, j).
  template <int Pieces>
  XLNET_FAST_DEVICE void write(const View& view, uint32_t shared,
                               const SoftmaxTile<Element, Pieces>& tile) const {
    write_run(Run<Type>{begin_of(view, i_), 0, keys_}, shared, tile);
  }

  // The same of a table (b, n, i, p): key j has column j - position + L.
  template <int Pieces>
  XLNET_FAST_DEVICE void write_positions(const View& view, uint32_t shared,
                                         const SoftmaxTile<Element, Pieces>& tile) const {
    write_run(position_run(view), shared, tile);
  }

  // Zeros the columns of this row of a table (b, n, i, p) that belong to no key.
  XLNET_FAST_DEVICE void clear_other_positions(const View& view, int lane) const {
    const Run<Type> met = position_run(view);
    auto* row = const_cast<Type*>(begin_of(view, i_));
    const int columns = static_cast<int>(p_.table), offset = static_cast<int>(met.row - row);
    const int from = met.begin < met.end ? met.begin + offset : columns;
    const int to = met.begin < met.end ? met.end + offset : columns;
    const auto zeros = [](int) { return Chunk{}; };
    store_run(row, 0, from, lane, kWarpSize, zeros);
    store_run(row, to, columns, lane, kWarpSize, zeros);
  }

  XLNET_FAST_DEVICE void write_segment_gradient(float gradient) const {
    auto* row = const_cast<Type*>(begin_of(p_.d_segment_scores, 0));
    store(row + i_, static_cast<Type>(encode(Element{}, gradient)));
  }

 private:
  // Row i of a tensor (b, n, i, .), or (b, n, .).
  XLNET_FAST_DEVICE const Type* begin_of(const View& view, int i) const {
    return reinterpret_cast<const Type*>(view.data) + b_ * view.stride[0] + n_ * view.stride[1] +
           i * view.stride[2];
  }

  // This row of a table (b, n, i, p), as a run of keys.
  XLNET_FAST_DEVICE Run<Type> position_run(const View& view) const {
    const int offset = keys_ - static_cast<int>(p_.memory) - position_;  // of key 0's column
    const int begin = maximum(0, minimum(keys_, -offset));
    const int end = maximum(begin, minimum(keys_, static_cast<int>(p_.table) - offset));
    return {begin_of(view, i_) + offset, begin, end};
  }

  template <int Pieces>
  XLNET_FAST_DEVICE void write_run(const Run<Type>& run, uint32_t shared,
                                   const SoftmaxTile<Element, Pieces>& tile) const {
    using Tile = SoftmaxTile<Element, Pieces>;
    const int begin = maximum(run.begin, tile.first);
    const int end = minimum(run.end, tile.first + Tile::kKeys);
    if (begin >= end) return;
    store_run(const_cast<Type*>(run.row), begin, end, tile.lane, kWarpSize, [&](int key) {
      const int at = key - tile.first, within = at & (kWidth - 1);
      const int piece = (at - within) / kWidth;  // may be one before the first
      const auto staged = [&](int number) {
        const bool there = 0 <= number && number < Pieces * kWarpSize;
        return there ? load_shared<Chunk>(shared + kPieceBytes * static_cast<uint32_t>(number))
                     : Chunk{};
      };
      if (within == 0) return staged(piece);
      const int bytes = within * static_cast<int>(sizeof(Type));
      return shifted(staged(piece), staged(piece + 1), bytes);
    });
  }

  // First key of the row's window, and one past the last. A position is within 30 bits and what a
  // window is made of within 29, as is the number of keys: so far the sums fit 32.
  XLNET_FAST_DEVICE void find_window() {
    const Limits limits = Limits::of(p_, keys_);
    const int own = limits.start(position_) + static_cast<int>(p_.memory);
    window_begin_ = own - limits.left;
    window_end_ =
        window_begin_ < keys_ ? window_begin_ + limits.left + limits.chunk + limits.right : 0;
  }

  // --- sets of the keys of one piece, key .. key + kWidth - 1 ---

  XLNET_FAST_DEVICE static uint32_t low_bits(int count) {
    return (uint32_t{1} << minimum(maximum(count, 0), kWidth)) - 1;
  }

  // The keys whose number in a table (b, j) `holds`.
  template <class Holds>
  XLNET_FAST_DEVICE uint32_t keys_where(const int32_t* table, int key, const Holds& holds) const {
    const auto* row = reinterpret_cast<const uint32_t*>(table + b_ * p_.keys);
    uint32_t set = 0;
#pragma unroll
    for (int e = 0; e < kWidth; e += 4) {
      const Chunk four = load_piece(Run<uint32_t>{row, 0, keys_}, key + e);
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        set |= uint32_t{holds(static_cast<int32_t>(four.word[w]))} << (e + w);
      }
    }
    return set;
  }

  XLNET_FAST_DEVICE uint32_t differing_keys(int key) const {
    return keys_where(p_.segments_k, key, [&](int32_t segment) { return segment != segment_; });
  }

  XLNET_FAST_DEVICE uint32_t padded_keys(int key) const {
    const uint8_t* row = p_.key_padding + b_ * p_.keys + key;
    uint32_t set = 0;
#pragma unroll
    for (int e = 0; e < kWidth; e += 4) {
      const bool whole = misalignment(row + e) % 4 == 0 && key + e + 4 <= keys_;
      const uint32_t four = whole ? load(reinterpret_cast<const uint32_t*>(row + e)) : 0;
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        uint32_t hides = four >> 8 * w & 0xff;
        if (!whole && key + e + w < keys_) hides = load(row + e + w);
        set |= uint32_t{hides != 0} << (e + w);
      }
    }
    return set;
  }

  XLNET_FAST_DEVICE uint32_t hidden_keys(int key) const {
    uint32_t set = 0;
    if (p_.key_padding != nullptr) set |= padded_keys(key);
    if (p_.rank_k != nullptr) {
      set |= keys_where(p_.rank_k, key, [&](int32_t rank) { return rank >= rank_; });
    }
    if (p_.bits != nullptr && key < keys_) {
      const uint8_t* row = p_.bits + b_ * p_.bits_batch_stride + i_ * ((p_.keys + 7) / 8);
      set |= uint32_t{load(row + key / 8)} >> key % 8;
    }
    const int own = position_ + static_cast<int>(p_.memory);
    if (p_.causal) set |= ~low_bits(own + 1 - key);
    if (p_.same_length) set |= low_bits(position_ - key);
    if (Limits::any(p_)) set |= low_bits(window_begin_ - key) | ~low_bits(window_end_ - key);
    if (p_.see_self && key <= own && own < key + kWidth) set &= ~(uint32_t{1} << (own - key));
    return set & low_bits(kWidth);
  }

  const MaskedSoftmaxParams& p_;
  int keys_;
  uint32_t head_flat_;  // b * N + n
  int b_, n_, i_, position_;
  int rank_ = 0, segment_ = 0;
  int window_begin_ = 0, window_end_ = 0;
  float segment_score_ = 0.0f;
  PhiloxKey seed_{};
};

}  // namespace xlnet_fast::cuda
