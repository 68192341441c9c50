// Probabilities of a row of scores, and the gradients of its scores. Rows do not touch each other,
// so any number of threads gives the same bits.
//
//   s[j]  = scale * (scores[j] + position_scores[j - pos_i + L] + [segments differ] c_i)
//   P[j]  = e^(s[j] - max) / sum, a hidden key's s being -1e30
//   out   = P keep / (1 - p)
//   dP    = d_out keep / (1 - p)
//   dS    = scale P (dP - sum_j P dP) = d_scores[j] = d_position_scores[j - pos_i + L]
//   dc_i  = sum over the keys of another segment of dS
//
// NaN in the score of a hidden key reaches nothing; in that of a key that is seen, all of the row.
// Keys beyond a window are not even read, unless the row sees no key at all.
#pragma once

#include "row_io.h"
#include "row_mask.h"

namespace xlnet_fast::cpu::XLNET_FAST_ISA {
namespace {

template <class Type>
class SoftmaxRows {
 public:
  SoftmaxRows(const MaskedSoftmaxCall& call, char* scratch)
      : p_(call.params), keep_row_(call.keep_row), padded_(padded_keys(p_)) {
    auto* words = reinterpret_cast<float*>(scratch);
    x_ = words;
    d_probabilities_ = words + padded_;
    hidden_ = reinterpret_cast<int32_t*>(words + 2 * padded_);
    padding_ = reinterpret_cast<int32_t*>(words + 3 * padded_);
    ranks_ = reinterpret_cast<int32_t*>(words + 4 * padded_);
    segments_ = reinterpret_cast<int32_t*>(words + 5 * padded_);
    keep_ = reinterpret_cast<uint8_t*>(words + 6 * padded_);
  }

  static int64_t scratch_bytes(const MaskedSoftmaxParams& p) { return 25 * padded_keys(p); }

  void forward(Range rows) {
    for (int64_t flat = rows.begin; flat < rows.end; ++flat) {
      begin(flat);
      const Vec inverse = splat(1.0f / exponentials());
      const Row<Type> out = row_of(p_.out);
      if (p_.dropout) fill_keep();
      for (int64_t j = columns_.begin; j < columns_.end; j += kLanes) {
        Vec probability = load(x_ + j) * inverse;
        if (p_.dropout) probability = dropped(j, probability);
        out.store(j, probability);
      }
      clear_beyond(out);
    }
  }

  void backward(Range rows) {
    for (int64_t flat = rows.begin; flat < rows.end; ++flat) {
      begin(flat);
      const float expected = read_gradient(probabilities());
      write_gradients(expected);
    }
  }

 private:
  static int64_t padded_keys(const MaskedSoftmaxParams& p) { return round_up(p.keys, 64); }

  // Finds row `flat`, and reads what its batch element's keys share where that is another one.
  void begin(int64_t flat) {
    i_ = flat % p_.rows;
    n_ = flat / p_.rows % p_.heads;
    const int64_t b = flat / p_.rows / p_.heads;
    if (b != b_) read_keys(b);
    b_ = b;
    const int64_t table_row = b_ * p_.rows + i_;
    mask_.rank = p_.rank_q == nullptr ? 0 : p_.rank_q[table_row];
    mask_.position = p_.positions == nullptr ? i_ : p_.positions[table_row];
    find_columns();
    const int64_t bytes = (p_.keys + 7) / 8;
    mask_.bits = p_.bits == nullptr ? nullptr : p_.bits + b_ * p_.bits_batch_stride + i_ * bytes;
    has_segments_ = p_.segment_scores.data != nullptr;
    if (!has_segments_) return;
    segment_ = p_.segments_q[table_row];
    read_floats(at(p_.segment_scores, 0) + i_ * size_of(Type::kDtype), Type::kDtype, 1,
                &segment_score_);
  }

  // The keys that the window leaves, to whole vectors; all where it leaves none.
  void find_columns() {
    columns_ = {0, p_.keys};
    mask_.has_window = has_window(p_);
    if (!mask_.has_window) return;
    mask_.window = window_of(p_, mask_.position, p_.memory, p_.keys);
    if (mask_.window.begin >= mask_.window.end) return;
    columns_ = {mask_.window.begin / kLanes * kLanes,
                min_of(p_.keys, round_up(mask_.window.end, kLanes))};
  }

  bool is_whole() const { return columns_.begin == 0 && columns_.end == p_.keys; }

  void read_keys(int64_t b) {
    mask_.keys = p_.keys;
    mask_.memory = p_.memory;
    mask_.causal = p_.causal;
    mask_.same_length = p_.same_length;
    mask_.see_self = p_.see_self;
    mask_.padding = p_.key_padding == nullptr ? nullptr : padding_;
    mask_.ranks = p_.rank_k == nullptr ? nullptr : ranks_;
    for (int64_t j = 0; j < padded_; ++j) {
      const bool is_key = j < p_.keys;
      const int64_t from = b * p_.keys + j;
      if (mask_.padding != nullptr) padding_[j] = is_key && p_.key_padding[from] != 0 ? -1 : 0;
      if (mask_.ranks != nullptr) ranks_[j] = is_key ? p_.rank_k[from] : 0;
      if (p_.segments_k != nullptr) segments_[j] = is_key ? p_.segments_k[from] : 0;
    }
  }

  // Row i of a tensor (b, n, i, .), or (b, n, .).
  char* at(const View& view, int64_t i) const {
    return view.data +
           (b_ * view.stride[0] + n_ * view.stride[1] + i * view.stride[2]) * size_of(Type::kDtype);
  }

  Row<Type> row_of(const View& view) const { return {at(view, i_), 0, {0, p_.keys}}; }

  // Key j has column j - position + L.
  Row<Type> position_row(const View& view) const {
    if (view.data == nullptr) return {};
    const int64_t shift = p_.keys - p_.memory - mask_.position;
    const int64_t begin = min_of(p_.keys, max_of(0, -shift));
    return {at(view, i_), shift, {begin, max_of(begin, min_of(p_.keys, p_.table - shift))}};
  }

  // Fills x_ with the unscaled scores and returns the largest scaled one.
  float read_scores(bool hides) {
    const Row<Type> scores = row_of(p_.scores), positions = position_row(p_.position_scores);
    const bool has_positions = positions.data != nullptr, has_segments = has_segments_;
    const Vec scale = splat(p_.scale), c = splat(has_segments ? segment_score_ : 0.0f);
    const Vec hidden_score = splat(kHiddenScore), zero = splat(0.0f);
    const VecInt own = splat_int(segment_);
    float* x_row = x_;
    const int32_t *hidden = hidden_, *segments = segments_;
    Vec highest = splat(-__builtin_inff());
    for (int64_t j = columns_.begin, keys = columns_.end; j < keys; j += kLanes) {
      Vec x = scores.load(j);
      if (has_positions) x += positions.load(j);
      if (has_segments) x += select(load_int(segments + j) != own, c, zero);
      store(x_row + j, x);
      x *= scale;
      if (hides) x = select(load_int(hidden + j), hidden_score, x);
      highest = maximum(highest, select(inside(j, keys), x, highest));
    }
    return max_of(highest);
  }

  // Fills x_ with e^(s - max), zeros behind the last, and returns their sum.
  float exponentials() {
    const float total = exponentials_of_columns();
    if (is_whole() || (highest_ > kSeesNone && total == total)) return total;
    // The row sees none of these keys, hence none at all, or NaN: that reaches all keys.
    columns_ = {0, p_.keys};
    return exponentials_of_columns();
  }

  float exponentials_of_columns() {
    const bool hides = fill_hidden(mask_, columns_, hidden_ + columns_.begin);
    const float most = highest_ = read_scores(hides);
    const Vec zero = splat(0.0f);
    const BelowHighest below(p_.scale, most);
    const Vec hidden_less = splat(kHiddenScore - most);
    float* x_row = x_;
    const int32_t* hidden = hidden_;
    Vec total = zero;
    for (int64_t j = columns_.begin, keys = columns_.end; j < keys; j += kLanes) {
      Vec x = below.of(load(x_row + j));
      if (hides) x = select(load_int(hidden + j), hidden_less, x);
      const Vec finite = exp_of(x);
      const Vec power = select(inside(j, keys), select(x == x, finite, x), zero);
      total += power;
      store(x_row + j, power);
    }
    return sum_of(total);
  }

  // Leaves the probabilities before dropout in x_, but for the factor that it returns. Those of the
  // forward pass serve where they were neither rounded to a half nor dropped.
  float probabilities() {
    if (Type::kDtype != Dtype::kFloat32 || p_.dropout) return 1.0f / exponentials();
    const Row<Type> out = row_of(p_.out);
    if (!is_whole()) {
      // A key beyond the window has no part, unless the row saw none or NaN: that reached all keys.
      float beyond;
      const int64_t j = columns_.begin > 0 ? 0 : p_.keys - 1;
      read_floats(out.data + j * size_of(Type::kDtype), Type::kDtype, 1, &beyond);
      if (beyond != 0.0f) columns_ = {0, p_.keys};
    }
    for (int64_t j = columns_.begin; j < columns_.end; j += kLanes) store(x_ + j, out.load(j));
    return 1.0f;
  }

  // Fills x_ with P and d_probabilities_ with dP, and returns sum_j P dP.
  float read_gradient(float factor) {
    const Row<Type> d_out = row_of(p_.d_out);
    const Vec inverse = splat(factor);
    if (p_.dropout) fill_keep();
    Vec total = splat(0.0f);
    for (int64_t j = columns_.begin; j < columns_.end; j += kLanes) {
      const Vec probability = load(x_ + j) * inverse;
      Vec gradient = d_out.load(j);
      if (p_.dropout) gradient = dropped(j, gradient);
      total = multiply_add(probability, gradient, total);
      store(x_ + j, probability);
      store(d_probabilities_ + j, gradient);
    }
    return sum_of(total);
  }

  void write_gradients(float expected) {
    const Row<Type> d_scores = row_of(p_.d_scores);
    const Row<Type> d_positions = position_row(p_.d_position_scores);
    const Vec scale = splat(p_.scale), mean = splat(expected), zero = splat(0.0f);
    const VecInt own = splat_int(segment_);
    Vec segment_total = zero;
    clear_beyond(d_scores);
    if (d_positions.data != nullptr) {
      clear_outside(d_positions);
      clear_beyond(d_positions);
    }
    for (int64_t j = columns_.begin; j < columns_.end; j += kLanes) {
      const Vec gradient = load(x_ + j) * (load(d_probabilities_ + j) - mean) * scale;
      d_scores.store(j, gradient);
      if (d_positions.data != nullptr) d_positions.store(j, gradient);
      if (has_segments_) {
        segment_total += select(load_int(segments_ + j) != own, gradient, zero);
      }
    }
    if (!has_segments_) return;
    const float total = sum_of(segment_total);
    write_floats(&total, 1, Type::kDtype, at(p_.d_segment_scores, 0) + i_ * size_of(Type::kDtype));
  }

  // Zeros what belongs to keys beyond the window.
  void clear_beyond(const Row<Type>& row) const {
    const Vec zero = splat(0.0f);
    for (int64_t j = 0; j < columns_.begin; j += kLanes) row.store(j, zero);
    for (int64_t j = columns_.end; j < p_.keys; j += kLanes) row.store(j, zero);
  }

  // Zeros the columns of the table that belong to no key.
  void clear_outside(const Row<Type>& row) const {
    constexpr int64_t kSize = size_of(Type::kDtype);
    const Range written{row.shift + row.inside.begin, row.shift + row.inside.end};
    const bool none = row.inside.size() == 0;
    const int64_t before = none ? p_.table : written.begin;
    __builtin_memset(row.data, 0, static_cast<size_t>(before * kSize));
    if (none) return;
    __builtin_memset(row.data + written.end * kSize, 0,
                     static_cast<size_t>((p_.table - written.end) * kSize));
  }

  void fill_keep() {
    const RowCounter at{static_cast<uint32_t>(i_),
                        static_cast<uint32_t>(b_ * p_.heads + n_),
                        static_cast<uint32_t>(p_.seed),
                        static_cast<uint32_t>(p_.seed >> 32),
                        p_.keep_from,
                        static_cast<uint32_t>(columns_.begin / 4)};
    keep_row_(keep_ + columns_.begin, columns_.size(), at);
  }

  // x keep / (1 - p) of keys j .. j + kLanes - 1.
  Vec dropped(int64_t j, Vec x) const {
    ByteVec kept;
    __builtin_memcpy(&kept, keep_ + j, sizeof kept);
    const VecInt mask = -__builtin_convertvector(kept, VecInt);
    return select(mask, x * splat(p_.keep_scale), splat(0.0f));
  }

  static VecInt inside(int64_t j, int64_t keys) {
    return lane_numbers() < splat_int(static_cast<int32_t>(keys - j));
  }

  const MaskedSoftmaxParams& p_;
  const KeepRow keep_row_;
  const int64_t padded_;  // keys in whole vectors
  RowMask mask_;
  int64_t b_ = -1, n_ = 0, i_ = 0;
  bool has_segments_ = false;
  int32_t segment_ = 0;
  float segment_score_ = 0.0f;
  Range columns_{0, 0};          // keys that the row may see, of whose scores something is made
  float highest_ = 0.0f;         // of the row's scaled scores
  float *x_, *d_probabilities_;  // [padded]
  int32_t *hidden_, *padding_, *ranks_, *segments_;  // [padded]
  uint8_t* keep_;                                    // [padded]
};

inline int64_t scratch_bytes(const MaskedSoftmaxParams& p) {
  return SoftmaxRows<Float32Row>::scratch_bytes(p);
}

inline void forward(const MaskedSoftmaxCall& call, Range rows, char* scratch) {
  switch (call.params.dtype) {
    case Dtype::kFloat32:
      return SoftmaxRows<Float32Row>(call, scratch).forward(rows);
    case Dtype::kBFloat16:
      return SoftmaxRows<BFloat16Row>(call, scratch).forward(rows);
    case Dtype::kFloat16:
      return SoftmaxRows<Float16Row>(call, scratch).forward(rows);
  }
}

inline void backward(const MaskedSoftmaxCall& call, Range rows, char* scratch) {
  switch (call.params.dtype) {
    case Dtype::kFloat32:
      return SoftmaxRows<Float32Row>(call, scratch).backward(rows);
    case Dtype::kBFloat16:
      return SoftmaxRows<BFloat16Row>(call, scratch).backward(rows);
    case Dtype::kFloat16:
      return SoftmaxRows<Float16Row>(call, scratch).backward(rows);
  }
}

}  // namespace
}  // namespace xlnet_fast::cpu::XLNET_FAST_ISA
