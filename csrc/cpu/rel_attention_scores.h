// A tile of query rows: its queries with their biases, its scores, its softmax.
//
//   S[i, j] = (q_i + r_w_bias) . k_j + (q_i + r_r_bias) . r_p + c_i [segments differ],  p = j -
//   pos_i + L
//
// The position products of a row, columns p of (q + r_r_bias) r^T, are written p - p(i, 0) columns
// to the right: there lies j. That is the whole shift. The content products are then added.
// All keys of the rows lie side by side, so the softmax needs no running maximum.
#pragma once

#include "rel_attention_head.h"
#include "row_mask.h"

namespace xlnet_fast::cpu::XLNET_FAST_ISA {
namespace {

constexpr int64_t kMaxRows = 48;         // of a tile
constexpr int64_t kScoreWords = 131072;  // of a tile, where rows are that long: half a mebibyte

// From one row of scores to the next: room for a panel on either side, and no multiple of 256
// words, or a column's elements would fall into few sets of the cache.
constexpr int64_t score_stride(int64_t padded_keys) {
  const int64_t words = padded_keys + 2 * kPanel;
  return words % 256 == 0 ? words + 16 : words;
}

constexpr int64_t rows_of_tile(int64_t padded_keys) {
  const int64_t fitting = kScoreWords / score_stride(padded_keys) / kTileRows * kTileRows;
  return max_of(kTileRows, min_of(kMaxRows, fitting));
}

template <class Words>
class Tile {
 public:
  Tile(const AttentionKeys& keys, const Head<Words>& head, KeepRow keep_row, Arena& arena)
      : keys_(keys), head_(head), sizes_(head.sizes()), keep_row_(keep_row) {
    const int64_t elements = head.depth() * Words::kElements;
    stride = score_stride(sizes_.padded_keys);
    const int64_t rows = rows_of_tile(sizes_.padded_keys);
    q_w = arena.take<Element<Words>>(rows * elements);
    q_r = arena.take<Element<Words>>(rows * elements);
    dim_stride = round_up(sizes_.dim, kLanes);
    q = arena.take<float>(rows * dim_stride);
    biases_ = arena.take<float>(4 * dim_stride);
    row_ = arena.take<float>(dim_stride);
    segment_score = arena.take<float>(rows);
    inverse_sum = arena.take<float>(rows);
    shift = arena.take<int64_t>(rows);
    position = arena.take<int64_t>(rows);
    hidden_ = arena.take<int32_t>(sizes_.padded_keys);
    keep_ = arena.take<uint8_t>(keys.dropout ? sizes_.padded_keys : 0);
    scores = arena.take<float>(rows * stride) + (arena.counting() ? 0 : kPanel);
  }

  // Reads rows first .. first + count of a stream and their positions.
  void begin(const AttentionStream& stream, int64_t b, int64_t n, int64_t first, int64_t count) {
    stream_ = &stream;
    b_ = b;
    n_ = n;
    first_ = first;
    rows = count;
    read_biases(n);
    for (int64_t i = 0; i < rows; ++i) read_query(i);
  }

  // Gives e^(x - max) of the keys `columns` and sets `inverse_sum`. Each row is kept in `scores`,
  // or written to `rounded`, whose rows are `rounded_stride` elements apart.
  void softmax(Element<Words>* rounded = nullptr, int64_t rounded_stride = 0) {
    columns = visible_columns();
    if (columns.size() == 0) {
      columns = {0, sizes_.keys};
      make_uniform(rounded, rounded_stride);
      return;
    }
    const bool is_whole = columns.begin == 0 && columns.end == sizes_.keys;
    if (!exponentials(rounded, rounded_stride) && !is_whole) {
      // A row sees none of these keys, hence none at all: it is uniform over all of them.
      columns = {0, sizes_.keys};
      exponentials(rounded, rounded_stride);
    }
  }

  // 0 or 1 for each of the keys `columns` of row i, where there is dropout.
  const uint8_t* keep(int64_t i) const {
    const RowCounter at{static_cast<uint32_t>(first_ + i),
                        static_cast<uint32_t>(b_ * keys_.heads + n_),
                        static_cast<uint32_t>(stream_->seed),
                        static_cast<uint32_t>(stream_->seed >> 32),
                        keys_.keep_from,
                        static_cast<uint32_t>(columns.begin / 4)};
    keep_row_(keep_, columns.size(), at);
    return keep_;
  }

  bool has_segments() const { return stream_->segments != nullptr; }
  int32_t segment(int64_t i) const { return stream_->segments[table_row(i)]; }
  bool is_absent(int64_t i) const {
    return stream_->positions != nullptr && stream_->positions[b_ * stream_->rows + first_ + i] < 0;
  }
  const float* segment_bias() const { return biases_ + 2 * dim_stride; }        // r_s_bias
  const float* segment_difference() const { return biases_ + 3 * dim_stride; }  // of seg_embed
  int64_t first() const { return first_; }

  int64_t rows = 0;          // of this tile
  int64_t stride;            // of scores
  Range columns{0, 0};       // keys whose scores were computed: column j - columns.begin
  Element<Words>*q_w, *q_r;  // [rows, words], with their biases
  int64_t dim_stride;        // D in whole vectors, the rest zeros
  float* q;                  // [rows, dim_stride]
  float* segment_score;      // [rows]
  float* inverse_sum;        // [rows]
  int64_t* shift;            // [rows], the row of r of key columns.begin
  int64_t* position;         // [rows], 0 for an absent one
  float* scores;             // [rows, stride]

 private:
  int64_t table_row(int64_t i) const {
    return b_ * stream_->table + (stream_->by_position ? position[i] : first_ + i);
  }

  void read_biases(int64_t n) {
    const View* views[] = {&keys_.r_w_bias, &keys_.r_r_bias, &keys_.r_s_bias};
    for (int which = 0; which < 3; ++which) {
      const bool given = views[which]->data != nullptr;
      read_vector(given ? at(*views[which], keys_.dtype, n, 0, 0) : nullptr,
                  biases_ + which * dim_stride);
    }
    if (keys_.seg_embed.data == nullptr) return;
    float* difference = biases_ + 3 * dim_stride;
    read_vector(at(keys_.seg_embed, keys_.dtype, 0, n, 0), row_);
    read_vector(at(keys_.seg_embed, keys_.dtype, 1, n, 0), difference);
    for (int64_t d = 0; d < dim_stride; ++d) difference[d] -= row_[d];
  }

  // D floats and zeros up to a whole vector; all zeros where there is no data.
  void read_vector(const char* data, float* out) const {
    const int64_t count = data == nullptr ? 0 : sizes_.dim;
    if (count > 0) read_floats(data, keys_.dtype, count, out);
    for (int64_t d = count; d < dim_stride; ++d) out[d] = 0.0f;
  }

  void read_query(int64_t i) {
    const int64_t elements = head_.depth() * Words::kElements, row_index = first_ + i;
    float* row = q + i * dim_stride;
    const bool absent = is_absent(i);
    read_vector(absent ? nullptr : at(stream_->q, keys_.dtype, b_, row_index, n_), row);
    const bool listed = stream_->positions != nullptr;
    position[i] =
        max_of(0, listed ? stream_->positions[b_ * stream_->rows + row_index] : row_index);
    for (int which = 0; which < 2; ++which) {
      const float* bias = biases_ + which * dim_stride;
      for (int64_t d = 0; d < dim_stride; d += kLanes)
        store(row_ + d, load(row + d) + load(bias + d));
      write_elements<Words>(row_, sizes_.dim, (which == 0 ? q_w : q_r) + i * elements);
    }
    Vec score = splat(0.0f);
    if (has_segments()) {
      for (int64_t d = 0; d < dim_stride; d += kLanes) {
        score = multiply_add(load(row + d) + load(segment_bias() + d),
                             load(segment_difference() + d), score);
      }
    }
    segment_score[i] = sum_of(score);
  }

  // Keys outside these are hidden from every row of the tile that sees a key at all; none: no row
  // does. Whole panels.
  Range visible_columns() const {
    int64_t lowest = position[0], highest = position[0];
    for (int64_t i = 1; i < rows; ++i) {
      lowest = min_of(lowest, position[i]);
      highest = max_of(highest, position[i]);
    }
    Range seen = head_.visible();
    if (stream_->causal) seen.end = min_of(seen.end, keys_.memory + highest + 1);
    if (stream_->same_length) seen.begin = max_of(seen.begin, lowest);
    if (has_window(*stream_)) {
      seen.begin = max_of(seen.begin, window(lowest).begin);
      seen.end = min_of(seen.end, window(highest).end);
    }
    if (stream_->see_self) {
      seen.begin = min_of(seen.begin, keys_.memory + lowest);
      seen.end = max_of(seen.end, keys_.memory + highest + 1);
    }
    if (seen.begin >= seen.end) return {0, 0};
    return {seen.begin / kPanel * kPanel, min_of(sizes_.keys, round_up(seen.end, kPanel))};
  }

  Range window(int64_t at) const { return window_of(*stream_, at, keys_.memory, sizes_.keys); }

  void find_shifts() {
    for (int64_t i = 0; i < rows; ++i) {
      shift[i] = columns.begin - position[i] + sizes_.current;
    }
  }

  // As `exponentials`, where no row sees a key: without any product.
  void make_uniform(Element<Words>* rounded, int64_t rounded_stride) {
    const int64_t width = columns.size();
    find_shifts();
    for (int64_t i = 0; i < rows; ++i) {
      inverse_sum[i] = 1.0f / static_cast<float>(width);
      for (int64_t j = 0; j < width; j += kLanes) {
        const Vec ones = select(inside(j, width), splat(1.0f), splat(0.0f));
        if (rounded == nullptr) {
          store(scores + i * stride + j, ones);
        } else {
          store_elements(rounded + i * rounded_stride + j, ones);
        }
      }
    }
  }

  // False where a row sees none of the tile's keys.
  bool exponentials(Element<Words>* rounded, int64_t rounded_stride) {
    const int64_t width = columns.size(), depth = head_.depth();
    find_shifts();
    const Left a_r{reinterpret_cast<const float*>(q_r), depth, 1};
    const Left a_w{reinterpret_cast<const float*>(q_w), depth, 1};
    multiply_shifted<Words>(rows, sizes_.table, depth, a_r, head_.r_columns(), shift, width, scores,
                            stride);
    const Right keys{head_.k_columns().data + columns.begin * depth, depth};
    multiply<Words>(rows, width, depth, a_w, keys, scores, stride, true);
    pads_ = head_.pads_any(columns);
    bool all_see = true;
    for (int64_t i = 0; i < rows; ++i) {
      const int32_t* hidden = hidden_keys(i);
      const float most = hidden == nullptr ? highest<false>(i, hidden) : highest<true>(i, hidden);
      if (rounded == nullptr) {
        hidden == nullptr ? powers<false>(i, hidden, most) : powers<true>(i, hidden, most);
      } else {
        Element<Words>* out = rounded + i * rounded_stride;
        hidden == nullptr ? powers<false>(i, hidden, most, out)
                          : powers<true>(i, hidden, most, out);
      }
      const bool sees_nan = inverse_sum[i] != inverse_sum[i];
      all_see = all_see && (most > kSeesNone || sees_nan);
    }
    return all_see;
  }

  // The highest scaled score of row i, its segment scores added.
  template <bool kHides>
  float highest(int64_t i, const int32_t* hidden) {
    const int64_t width = columns.size();
    float* row = scores + i * stride;
    const int32_t* segments = head_.segments() + columns.begin;
    const bool segmented = has_segments();
    const VecInt own = splat_int(segmented ? segment(i) : 0);
    const Vec c = splat(segment_score[i]), scale = splat(keys_.scale);
    Vec most = splat(-__builtin_inff());
    for (int64_t j = 0; j < width; j += kLanes) {
      Vec x = load(row + j);
      if (segmented) {
        x = select(load_int(segments + j) != own, x + c, x);
        store(row + j, x);
      }
      x *= scale;
      if (kHides) x = select(load_int(hidden + j), splat(kHiddenScore), x);
      if (j + kLanes > width) x = select(inside(j, width), x, most);
      most = maximum(most, x);
    }
    return max_of(most);
  }

  // e^(x - most) of row i, in place or rounded to `out`.
  template <bool kHides, class Out = float>
  void powers(int64_t i, const int32_t* hidden, float most, Out* out = nullptr) {
    constexpr bool kFast = Words::kElements > 1;
    const int64_t width = columns.size();
    float* row = scores + i * stride;
    const BelowHighest below(keys_.scale, most);
    const Vec hidden_less = splat(kHiddenScore - most);
    BlockSum total;
    for (int64_t j = 0; j < width; j += kLanes) {
      Vec x = below.of(load(row + j));
      if (kHides) x = select(load_int(hidden + j), hidden_less, x);
      Vec power = exp_of<kFast>(x);
      if (j + kLanes > width) power = select(inside(j, width), power, splat(0.0f));
      total.add(power);
      if (out == nullptr) {
        store(row + j, power);
      } else {
        store_elements(out + j, power);
      }
    }
    inverse_sum[i] = 1.0f / total.value();
  }

  static VecInt inside(int64_t j, int64_t width) {
    return lane_numbers() < splat_int(static_cast<int32_t>(width - j));
  }

  // All ones, from columns.begin on, at the keys that row i must not see; null: it sees all.
  const int32_t* hidden_keys(int64_t i) {
    const bool has_ranks = stream_->rank_q != nullptr, has_bits = stream_->bits != nullptr;
    const bool has_more = has_ranks || has_bits || stream_->causal || has_window(*stream_);
    if (!pads_ && !has_more) return nullptr;
    const int64_t self = keys_.memory + position[i];
    const bool sees_self = stream_->see_self && columns.begin <= self && self < columns.end;
    if (!has_more && !(sees_self && head_.padding()[self] != 0)) {
      return head_.padding() + columns.begin;
    }
    RowMask mask;
    mask.padding = head_.padding();
    mask.ranks = has_ranks ? head_.ranks() : nullptr;
    mask.rank = has_ranks ? stream_->rank_q[table_row(i)] : 0;
    mask.bits = has_bits ? bits_of_row(i) : nullptr;
    mask.keys = sizes_.keys;
    mask.memory = keys_.memory;
    mask.position = position[i];
    mask.causal = stream_->causal;
    mask.same_length = stream_->same_length;
    mask.see_self = stream_->see_self;
    mask.has_window = has_window(*stream_);
    mask.window = window(position[i]);
    fill_hidden(mask, columns, hidden_);
    return hidden_;
  }

  const uint8_t* bits_of_row(int64_t i) const {
    const int64_t bytes = (sizes_.keys + 7) / 8;
    const int64_t row = stream_->by_position ? position[i] : first_ + i;
    return stream_->bits + b_ * stream_->bits_batch_stride + row * bytes;
  }

  const AttentionKeys& keys_;
  const Head<Words>& head_;
  const Sizes& sizes_;
  const KeepRow keep_row_;
  const AttentionStream* stream_ = nullptr;
  int64_t b_ = 0, n_ = 0, first_ = 0;
  bool pads_ = false;  // a key of `columns` is padded
  float *biases_, *row_;
  int32_t* hidden_;
  uint8_t* keep_;
};

}  // namespace
}  // namespace xlnet_fast::cpu::XLNET_FAST_ISA
