// Attention of a few query rows over cached keys, one pair of a head and a batch element at a time.
//
//   s[x,j]  = scale * ((q_x + r_w_bias) k_j + (q_x + r_r_bias) table[far - position_x +
//   position_j]) out[x]  = sum_j e^(s[x,j] - max_x) v_j / sum_j e^(s[x,j] - max_x), over the keys
//   that row x sees
//
// It takes as long as keys, values and table take to come from memory, each once: rows are a few
// registers, keys pass by them. Where there are more rows than registers, blocks of keys stay in
// the first-level cache from one tile of rows to the next.
#pragma once

#include "row_io.h"

namespace xlnet_fast::cpu::XLNET_FAST_ISA {
namespace {

constexpr int kRowsAtOnce = 3;  // with four keys, as many sums as there are registers for
constexpr int kKeysAtOnce = 4;
constexpr int kGroups = kLanes / kKeysAtOnce;  // of keys, whose scores fill a vector
constexpr int64_t kBlockKeys = 64;

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
class CachedRows {
 public:
  CachedRows(const CachedAttentionParams& params, char* scratch)
      : p_(params),
        width_(round_up(params.head_dim, kLanes)),
        whole_(params.head_dim / kLanes * kLanes),
        padded_(round_up(params.keys, kLanes)) {
    auto* words = reinterpret_cast<float*>(scratch);
    const auto next = [&words](int64_t count) {
      float* const at = words;
      words += round_up(count, 16);
      return at;
    };
    content_ = next(p_.rows * width_);
    position_ = next(p_.rows * width_);
    out_ = next(p_.rows * width_);
    scores_ = next(p_.rows * padded_);
    inverse_ = next(p_.rows);
    first_ = reinterpret_cast<int64_t*>(next(2 * p_.rows));
    for (int64_t x = 0; x < p_.rows; ++x) {
      first_[x] = p_.far - (p_.positions == nullptr ? p_.rows_at + x : p_.positions[x]);
    }
  }

  static int64_t scratch_bytes(const CachedAttentionParams& p) {
    const int64_t width = round_up(p.head_dim, kLanes);
    return 4 * (3 * round_up(p.rows * width, 16) + round_up(p.rows * round_up(p.keys, kLanes), 16) +
                round_up(p.rows, 16) + round_up(2 * p.rows, 16));
  }

  void forward(int64_t n, int64_t b) {
    k_ = at(p_.k, b, n), v_ = at(p_.v, b, n), table_ = at(p_.table, n, 0);
    hidden_ = p_.hidden == nullptr ? nullptr : p_.hidden + b * p_.hidden_stride[0];
    read_rows(n, b);
    for (int64_t j = 0; j < p_.keys; j += kBlockKeys) {
      const Range keys{j, min_of(j + kBlockKeys, p_.keys)};
      in_tiles([&](int64_t x, auto rows) { score<decltype(rows)::value>(x, keys); });
    }
    for (int64_t x = 0; x < p_.rows; ++x) inverse_[x] = exponentials(x);
    for (int64_t j = 0; j < p_.keys; j += kBlockKeys) {
      const Range keys{j, min_of(j + kBlockKeys, p_.keys)};
      in_tiles([&](int64_t x, auto rows) { add_seen_values<decltype(rows)::value>(x, keys); });
    }
    for (int64_t x = 0; x < p_.rows; ++x) write_row(x, n, b);
  }

 private:
  static constexpr int64_t kSize = size_of(Type::kDtype);
  static constexpr float kBlind = -1.0f;  // in place of a sum's inverse: the row sees no key

  static const char* at(const View& view, int64_t i, int64_t j) {
    return view.data + (i * view.stride[0] + j * view.stride[1]) * kSize;
  }

  // Calls of(x, rows) for all tiles: rows from x on whose positions follow one another, their
  // number as a constant.
  template <class Of>
  XLNET_FAST_INLINE void in_tiles(const Of& of) const {
    for (int64_t x = 0; x < p_.rows;) {
      const int64_t left = p_.rows - x;
      const bool two = left >= 2 && first_[x + 1] == first_[x] - 1;
      if (two && left >= 3 && first_[x + 2] == first_[x] - 2) {
        of(x, std::integral_constant<int, kRowsAtOnce>());
        x += kRowsAtOnce;
      } else if (two) {
        of(x, std::integral_constant<int, 2>());
        x += 2;
      } else {
        of(x, std::integral_constant<int, 1>());
        x += 1;
      }
    }
  }

  // Queries with their biases, zeros behind the last element, and no output yet.
  void read_rows(int64_t n, int64_t b) {
    const char* const w = at(p_.r_w_bias, n, 0);
    const char* const r = at(p_.r_r_bias, n, 0);
    for (int64_t x = 0; x < p_.rows; ++x) {
      const char* const q = at(p_.q, x, b) + n * p_.q.stride[2] * kSize;
      for (int64_t d = 0; d < width_; d += kLanes) {
        const int64_t count = p_.head_dim - d;
        const Vec row = load_first<Type>(q + d * kSize, count);
        store(content_ + x * width_ + d, row + load_first<Type>(w + d * kSize, count));
        store(position_ + x * width_ + d, row + load_first<Type>(r + d * kSize, count));
        store(out_ + x * width_ + d, splat(0.0f));
      }
    }
  }

  const char* key(int64_t j) const { return k_ + j * p_.k.stride[2] * kSize; }
  const char* value(int64_t j) const { return v_ + j * p_.v.stride[2] * kSize; }

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

  // sums[row][i - first + row] += factors[row] others: of a key, which is i for all rows (kStep 0),
  // or of a row of the table, which is that of key i for the last row and of those behind it for
  // others. One key after the other, all of each: so they lie in memory, and so the CPU fetches
  // them ahead.
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

  // All ones in the lanes of keys j .. that there are and that row x sees.
  VecInt seen(int64_t x, int64_t j) const {
    const int64_t count = p_.keys - j;
    VecInt sees = lane_numbers() < splat_int(static_cast<int32_t>(min_of(count, kLanes)));
    if (hidden_ == nullptr) return sees;
    ByteVec bytes = {};
    __builtin_memcpy(&bytes, hidden_ + x * p_.hidden_stride[1] + j,
                     static_cast<size_t>(min_of(count, kLanes)));
    return sees & (__builtin_convertvector(bytes, VecInt) == splat_int(0));
  }

  // Turns the scores of a row into e^(s - max), 0 for a key that is hidden and behind the last.
  // Returns one over their sum, or kBlind.
  float exponentials(int64_t x) {
    float* const row = scores_ + x * padded_;
    const Vec scale = splat(p_.scale), least = splat(-__builtin_inff()), zero = splat(0.0f);
    Vec highest = least;
    VecInt any = splat_int(0);
    for (int64_t j = 0; j < p_.keys; j += kLanes) {
      const VecInt sees = seen(x, j);
      any |= sees;
      highest = maximum(highest, select(sees, load(row + j) * scale, least));
    }
    bool sees_one = false;
    for (int lane = 0; lane < kLanes; ++lane) sees_one |= any[lane] != 0;
    if (!sees_one) return kBlind;
    const BelowHighest below(p_.scale, max_of(highest));
    Vec total = zero;
    for (int64_t j = 0; j < p_.keys; j += kLanes) {
      const Vec below_highest = below.of(load(row + j));
      const Vec finite = exp_of(below_highest);
      const Vec power = select(below_highest == below_highest, finite, below_highest);
      const Vec weight = select(seen(x, j), power, zero);
      store(row + j, weight);
      total += weight;
    }
    return 1.0f / sum_of(total);
  }

  // out[x] += weights[x] values, of keys that all of kRows rows see.
  template <int kRows>
  void add_values(int64_t x, Range keys) {
    int64_t d = 0;
    for (; d + kTileVectors * kLanes <= whole_; d += kTileVectors * kLanes) {
      add_columns<kRows, kTileVectors>(x, keys, d);
    }
    for (; d < whole_; d += kLanes) add_columns<kRows, 1>(x, keys, d);
    if (d < p_.head_dim) add_columns<kRows, 1>(x, keys, d, p_.head_dim - d);
  }

  template <int kRows, int kVectors>
  XLNET_FAST_INLINE void add_columns(int64_t x, Range keys, int64_t d, int64_t count = kLanes) {
    const float* const weights = scores_ + x * padded_;
    const int64_t stride = (kDim > 0 ? kDim : p_.v.stride[2]) * kSize;
    Vec sums[kRows][kVectors];
    for (auto& of_row : sums) {
      for (Vec& sum : of_row) sum = splat(0.0f);
    }
    for (int64_t j = keys.begin; j < keys.end; ++j) {
      const char* const from = v_ + j * stride + d * kSize;
      Vec weight[kRows];
      for (int row = 0; row < kRows; ++row) weight[row] = splat(weights[row * padded_ + j]);
      for (int v = 0; v < kVectors; ++v) {
        const Vec columns = kept(count < kLanes ? load_first<Type>(from, count)
                                                : load_all<Type>(from + v * kLanes * kSize));
        for (int row = 0; row < kRows; ++row) {
          sums[row][v] = multiply_add(weight[row], columns, sums[row][v]);
        }
      }
    }
    for (int row = 0; row < kRows; ++row) {
      float* const to = out_ + (x + row) * width_ + d;
      for (int v = 0; v < kVectors; ++v)
        store(to + v * kLanes, load(to + v * kLanes) + sums[row][v]);
    }
  }

  bool hides(int64_t x, int64_t j) const { return hidden_[x * p_.hidden_stride[1] + j] != 0; }

  // As add_values of the keys that each row sees: what a hidden one holds may be NaN, which a
  // weight of 0 would let through.
  template <int kRows>
  void add_seen_values(int64_t x, Range keys) {
    if (hidden_ == nullptr) return add_values<kRows>(x, keys);
    const auto who_sees = [&](int64_t j) {
      int rows = 0;
      for (int row = 0; row < kRows; ++row) rows |= hides(x + row, j) ? 0 : 1 << row;
      return rows;
    };
    for (int64_t j = keys.begin; j < keys.end;) {
      const int rows = who_sees(j);
      const int64_t begin = j;
      while (++j < keys.end && who_sees(j) == rows) {
      }
      if (rows == (1 << kRows) - 1) {
        add_values<kRows>(x, {begin, j});
      } else {
        for (int row = 0; row < kRows; ++row) {
          if (rows >> row & 1) add_values<1>(x + row, {begin, j});
        }
      }
    }
  }

  // Of a row that sees no key: the mean of all, but for what is not finite where no row sees it.
  void add_all_values(int64_t x) {
    float* const to = out_ + x * width_;
    for (int64_t j = 0; j < p_.keys; ++j) {
      bool is_seen = false;
      for (int64_t other = 0; other < p_.rows; ++other) is_seen |= !hides(other, j);
      for (int64_t d = 0; d < p_.head_dim; d += kLanes) {
        const Vec columns = load_first<Type>(value(j) + d * kSize, p_.head_dim - d);
        const Vec none = columns - columns;  // NaN where it is not finite
        const VecInt counts = is_seen ? splat_int(-1) : (VecInt)(none == none);
        store(to + d, load(to + d) + select(counts, columns, splat(0.0f)));
      }
    }
  }

  void write_row(int64_t x, int64_t n, int64_t b) {
    const bool blind = inverse_[x] == kBlind;
    if (blind) add_all_values(x);
    const Vec factor = splat(blind ? 1.0f / static_cast<float>(p_.keys) : inverse_[x]);
    char* const to = p_.out + ((x * p_.batch + b) * p_.heads + n) * p_.head_dim * kSize;
    const Row<Type> out{to, 0, {0, p_.head_dim}};
    for (int64_t d = 0; d < p_.head_dim; d += kLanes) {
      out.store(d, load(out_ + x * width_ + d) * factor);
    }
  }

  const CachedAttentionParams& p_;
  const int64_t width_, whole_;  // head_dim in whole vectors: rounded up, rounded down
  const int64_t padded_;         // keys in whole vectors
  const char *k_ = nullptr, *v_ = nullptr, *table_ = nullptr;  // of the pair
  const uint8_t* hidden_ = nullptr;                            // of the batch element, or null
  float *content_, *position_;  // [x, width]: q + r_w_bias, q + r_r_bias
  float* out_;                  // [x, width], before the division
  float* scores_;               // [x, padded]
  float* inverse_;              // [x]: one over the sum of weights, or kBlind
  int64_t* first_;              // [x]: the table's row of a key at position 0
};

inline int64_t scratch_bytes(const CachedAttentionParams& p) {
  return CachedRows<Float32Row, 0>::scratch_bytes(p);
}

template <class Type, int kDim>
void run(const CachedAttentionParams& p, Range pairs, char* scratch) {
  CachedRows<Type, kDim> rows(p, scratch);
  for (int64_t pair = pairs.begin; pair < pairs.end; ++pair) {
    rows.forward(pair / p.batch, pair % p.batch);
  }
}

template <class Type>
void run(const CachedAttentionParams& p, Range pairs, char* scratch) {
  constexpr int64_t kUsual = 64;  // head_dim of all published models
  const bool usual = p.head_dim == kUsual && p.k.stride[2] == kUsual && p.v.stride[2] == kUsual &&
                     p.table.stride[1] == kUsual;
  if (usual) return run<Type, kUsual>(p, pairs, scratch);
  run<Type, 0>(p, pairs, scratch);
}

inline void forward(const CachedAttentionParams& p, Range pairs, char* scratch) {
  if (p.dtype == Dtype::kFloat32) return run<Float32Row>(p, pairs, scratch);
  run<BFloat16Row>(p, pairs, scratch);
}

}  // namespace
}  // namespace xlnet_fast::cpu::XLNET_FAST_ISA
