// Scores of a few query rows and cached keys: what cached_attention_rows.h turns into weights.
//
//   s[x, j] = (q_x + r_w_bias) k_j + (q_x + r_r_bias) table[far - position_x + position_j]
//
// Keys and table pass by once, four at a time beside up to three rows, whose sums stay in
// registers.
#pragma once

#include "row_io.h"

namespace xlnet_fast::cpu::XLNET_FAST_ISA {
namespace {

constexpr int kRowsAtOnce = 3;  // with four keys, as many sums as there are registers for
constexpr int kKeysAtOnce = 4;
constexpr int64_t kBytesAhead = 4096;
constexpr int kGroups = kLanes / kKeysAtOnce;  // of keys, whose scores fill a vector

template <class Type>
XLNET_FAST_INLINE Vec load_all(const char* from) {
  typename Type::Raw raw;
  __builtin_memcpy(&raw, from, sizeof raw);
  return Type::widen(raw);
}

// The first `count` elements, then zeros: nothing behind them is read.
template <class Type>
XLNET_FAST_INLINE Vec load_first(const char* from, int64_t count) {
  return Row<Type>{const_cast<char*>(from), 0, {0, count}}.load(0);
}

// Loads a vector once for several products: gcc would rather read it again for each of them.
XLNET_FAST_INLINE Vec kept(Vec v) {
#if XLNET_FAST_LANES > 4
  __asm__("" : "+v"(v));
#endif
  return v;
}

// Lanes where `step` is not set: the sums of pairs of a; where it is: those of b.
XLNET_FAST_INLINE Vec sums_of(Vec a, Vec b, int step) {
  exchange(a, b, step);
  return a + b;
}

// Lanes i, i + 4, i + 8 .. of the result add up to the sum of the lanes of vector i.
XLNET_FAST_INLINE Vec sums_of_four(const Vec (&v)[4]) {
  return sums_of(sums_of(v[0], v[1], 1), sums_of(v[2], v[3], 1), 2);
}

// Lane 4 i + k of the result is the sum of lanes k, k + 4 .. of vector i.
XLNET_FAST_INLINE Vec sums_of_groups(const Vec (&v)[kGroups]) {
  if constexpr (kGroups == 4) {
    return sums_of(sums_of(v[0], v[1], 4), sums_of(v[2], v[3], 4), 8);
  } else if constexpr (kGroups == 2) {
    return sums_of(v[0], v[1], 4);
  } else {
    return v[0];
  }
}

// kDim: head_dim, where rows of keys, values and table are so many elements and dense; else 0.
template <class Type, int kDim>
class CachedScores {
 protected:
  static constexpr int64_t kSize = size_of(Type::kDtype);

  CachedScores(const CachedAttentionParams& params, float* words)
      : p_(params),
        width_(round_up(params.head_dim, kLanes)),
        whole_(params.head_dim / kLanes * kLanes),
        padded_(round_up(params.keys, kLanes)),
        content_(words),
        position_(content_ + p_.rows * width_),
        scores_(position_ + p_.rows * width_),
        first_(reinterpret_cast<int64_t*>(scores_ + p_.rows * padded_)) {
    for (int64_t x = 0; x < p_.rows; ++x) {
      first_[x] = p_.far - (p_.positions == nullptr ? p_.rows_at + x : p_.positions[x]);
    }
  }

  // Of the arrays above; all sizes but the last are whole vectors.
  static int64_t words(const CachedAttentionParams& p) {
    const int64_t width = round_up(p.head_dim, kLanes);
    return round_up(p.rows * (2 * width + round_up(p.keys, kLanes)) + 2 * p.rows, 16);
  }

  static const char* at(const View& view, int64_t i, int64_t j) {
    return view.data + (i * view.stride[0] + j * view.stride[1]) * kSize;
  }

  // Goes to a pair of a head and a batch element: its queries with their biases, zeros behind the
  // last element.
  void begin(int64_t n, int64_t b) {
    k_ = at(p_.k, b, n), table_ = at(p_.table, n, 0);
    const char *const w = at(p_.r_w_bias, n, 0), *const r = at(p_.r_r_bias, n, 0);
    for (int64_t x = 0; x < p_.rows; ++x) {
      const char* const q = at(p_.q, x, b) + n * p_.q.stride[2] * kSize;
      for (int64_t d = 0; d < width_; d += kLanes) {
        const int64_t count = p_.head_dim - d;
        const Vec row = load_first<Type>(q + d * kSize, count);
        store(content_ + x * width_ + d, row + load_first<Type>(w + d * kSize, count));
        store(position_ + x * width_ + d, row + load_first<Type>(r + d * kSize, count));
      }
    }
  }

  // Unscaled scores of kRows rows and the keys of a block. The last vector of keys ends with the
  // last key, and takes some a second time.
  template <int kRows>
  void score(int64_t x, Range keys) {
    for (int64_t begin = keys.begin; begin < keys.end; begin += kLanes) {
      const int64_t j = max_of(0, min_of(begin, p_.keys - kLanes));
      Vec parts[kGroups][kRows];
      for (int group = 0; group < kGroups; ++group) {
        const int64_t first = j + group * kKeysAtOnce;
        if (first < p_.keys) {
          score_group<kRows>(x, first, parts[group]);
        } else {
          for (Vec& none : parts[group]) none = splat(0.0f);
        }
      }
      for (int row = 0; row < kRows; ++row) {
        Vec of_row[kGroups];
        for (int group = 0; group < kGroups; ++group) of_row[group] = parts[group][row];
        store(scores_ + (x + row) * padded_ + j, sums_of_groups(of_row));
      }
    }
  }

  // Asks for what a loop over dense rows reads some time after `from`; harmless where it is not.
  // Measured: with a batch, whose elements find the table in the caches, this takes a fifth off the
  // time. With one element, where keys and table both come from memory, the CPU fetches them as far
  // ahead by itself, and asking costs more than it gains.
  XLNET_FAST_INLINE void ask_ahead_of(const char* from) const {
    if (p_.batch > 1) __builtin_prefetch(from + kBytesAhead, 0, 2);
  }

  const CachedAttentionParams& p_;
  const int64_t width_, whole_;  // head_dim in whole vectors: rounded up, rounded down
  const int64_t padded_;         // keys in whole vectors

 private:
  const char* key(int64_t j) const { return k_ + j * p_.k.stride[2] * kSize; }

  // The table's row of a pair, or the nearest: of some pairs that are hidden there is none.
  const char* table_row(int64_t x, int64_t j) const {
    const int64_t row = first_[x] + (p_.keys_at == nullptr ? j : p_.keys_at[j]);
    const int64_t inside = max_of(0, min_of(row, p_.table_rows - 1));
    return table_ + inside * p_.table.stride[1] * kSize;
  }

  // A vector of a row of elements, the last one of fewer than kLanes where kIsTail.
  template <bool kIsTail>
  XLNET_FAST_INLINE Vec part(const char* row, int64_t d) const {
    return kIsTail ? load_first<Type>(row + d * kSize, p_.head_dim - d)
                   : load_all<Type>(row + d * kSize);
  }

  // Some rows of fp32 numbers as factors: in registers, where there is room for all of them.
  template <int kRows>
  struct Factors {
    static constexpr bool kHeld = kDim == 4 * kLanes;
    const float* rows;
    int64_t width;
    Vec held[kRows][kHeld ? 4 : 1];

    XLNET_FAST_INLINE Factors(const float* from, int64_t row_width) : rows(from), width(row_width) {
      if constexpr (!kHeld) return;
      XLNET_FAST_UNROLL(4)
      for (int row = 0; row < kRows; ++row) {
        XLNET_FAST_UNROLL(4)
        for (int i = 0; i < 4; ++i)
          held[row][kHeld ? i : 0] = kept(load(from + row * kDim + i * kLanes));
      }
    }

    XLNET_FAST_INLINE Vec at(int row, int64_t d) const {
      return kHeld ? held[row][kHeld ? d / kLanes : 0] : load(rows + row * width + d);
    }
  };

  // Adds the products of the tile's rows and `others`: keys (kStep 0), each for all rows, or rows
  // of the table (kStep 1), of which the first one is that of the last row and the first key, and
  // each is for the row before that of the key behind. All of one, then all of the next: so they
  // lie in memory, and only so does the CPU fetch them ahead.
  template <int kRows, int kStep>
  XLNET_FAST_INLINE void add_products(Vec (&sums)[kRows][kKeysAtOnce],
                                      const Factors<kRows>& factors, const char* others,
                                      int64_t stride) const {
    const int64_t whole = kDim > 0 ? kDim : whole_;
    XLNET_FAST_UNROLL(8)
    for (int i = 0; i < kKeysAtOnce + kStep * (kRows - 1); ++i) {
      const char* const other = others + i * stride;
      XLNET_FAST_UNROLL(4)
      for (int64_t d = 0; d < whole; d += kLanes) {
        ask_ahead_of(other + d * kSize);
        add_product<kRows, kStep>(sums, factors, i, d, kept(part<false>(other, d)));
      }
      if (kDim == 0 && whole < p_.head_dim) {
        add_product<kRows, kStep>(sums, factors, i, whole, kept(part<true>(other, whole)));
      }
    }
  }

  template <int kRows, int kStep>
  static XLNET_FAST_INLINE void add_product(Vec (&sums)[kRows][kKeysAtOnce],
                                            const Factors<kRows>& factors, int i, int64_t d,
                                            Vec other) {
    XLNET_FAST_UNROLL(4)
    for (int row = 0; row < kRows; ++row) {
      const int j = i - kStep * (kRows - 1 - row);
      if (0 <= j && j < kKeysAtOnce) {
        sums[row][j] = multiply_add(factors.at(row, d), other, sums[row][j]);
      }
    }
  }

  // As add_products of keys and table, for keys behind the last and rows of the table that do not
  // follow one another.
  template <int kRows>
  void add_scattered(Vec (&sums)[kRows][kKeysAtOnce], int64_t x, int64_t first) const {
    for (int j = 0; j < kKeysAtOnce; ++j) {
      const int64_t at = min_of(first + j, p_.keys - 1);
      for (int row = 0; row < kRows; ++row) {
        const char *const k = key(at), *const distance = table_row(x + row, at);
        const float *const w = content_ + (x + row) * width_, *const r = position_ + (w - content_);
        Vec sum = splat(0.0f);
        for (int64_t d = 0; d < whole_; d += kLanes) {
          sum = multiply_add(load(w + d), part<false>(k, d), sum);
          sum = multiply_add(load(r + d), part<false>(distance, d), sum);
        }
        if (whole_ < p_.head_dim) {
          sum = multiply_add(load(w + whole_), part<true>(k, whole_), sum);
          sum = multiply_add(load(r + whole_), part<true>(distance, whole_), sum);
        }
        sums[row][j] = sum;
      }
    }
  }

  // Whether there are so many keys from j on, and the table's rows for them and a tile's rows,
  // which end with `x`, follow one another.
  template <int kRows>
  XLNET_FAST_INLINE bool is_regular(int64_t x, int64_t j) const {
    if (j + kKeysAtOnce > p_.keys) return false;
    int64_t least = first_[x] + j;
    if (p_.keys_at != nullptr) {
      for (int i = 1; i < kKeysAtOnce; ++i) {
        if (p_.keys_at[j + i] != p_.keys_at[j] + i) return false;
      }
      least += p_.keys_at[j] - j;
    }
    return least >= 0 && least + kRows + kKeysAtOnce - 1 <= p_.table_rows;
  }

  // Lanes i, i + 4 .. of parts[row] add up to the score of row x + row and key j + i.
  template <int kRows>
  XLNET_FAST_INLINE void score_group(int64_t x, int64_t j, Vec (&parts)[kRows]) const {
    Vec sums[kRows][kKeysAtOnce];
    for (auto& of_row : sums) {
      for (Vec& sum : of_row) sum = splat(0.0f);
    }
    if (is_regular<kRows>(x + kRows - 1, j)) {
      const int64_t width = kDim > 0 ? kDim : width_;
      const int64_t stride = kDim > 0 ? kDim : p_.k.stride[2];
      const int64_t table_stride = kDim > 0 ? kDim : p_.table.stride[1];
      add_products<kRows, 0>(sums, {content_ + x * width, width}, key(j), stride * kSize);
      add_products<kRows, 1>(sums, {position_ + x * width, width}, table_row(x + kRows - 1, j),
                             table_stride * kSize);
    } else {
      add_scattered<kRows>(sums, x, j);
    }
    for (int row = 0; row < kRows; ++row) parts[row] = sums_of_four(sums[row]);
  }

  const char *k_ = nullptr, *table_ = nullptr;  // of the pair
  float *const content_, *const position_;      // [x, width]: q + r_w_bias, q + r_r_bias

 protected:
  float* const scores_;   // [x, padded]
  int64_t* const first_;  // [x]: the table's row of a key at position 0
};

}  // namespace
}  // namespace xlnet_fast::cpu::XLNET_FAST_ISA
