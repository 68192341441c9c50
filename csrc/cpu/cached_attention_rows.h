// Attention of a few query rows over cached keys, one pair of a head and a batch element at a time.
//
//   w[x, j] = e^(scale s[x, j] - the largest of the row), 0 where row x must not see key j
//   out[x]  = sum_j w[x, j] v_j / sum_j w[x, j]
//
// It takes about as long as keys, values and table take to come from memory, each once. Where there
// are more rows than registers, blocks of keys stay in the caches from one tile of rows to the
// next.
#pragma once

#include "cached_attention_scores.h"

namespace xlnet_fast::cpu::XLNET_FAST_ISA {
namespace {

template <class Type, int kDim>
class CachedRows : private CachedScores<Type, kDim> {
  using Scores = CachedScores<Type, kDim>;

 public:
  CachedRows(const CachedAttentionParams& params, char* scratch)
      : Scores(params, reinterpret_cast<float*>(scratch)),
        out_(reinterpret_cast<float*>(scratch) + Scores::words(params)),
        inverse_(out_ + p_.rows * width_) {}

  static int64_t scratch_bytes(const CachedAttentionParams& p) {
    return 4 * (Scores::words(p) + p.rows * round_up(p.head_dim, kLanes) + p.rows);
  }

  void forward(int64_t n, int64_t b) {
    Scores::begin(n, b);
    v_ = Scores::at(p_.v, b, n);
    hidden_ = p_.hidden == nullptr ? nullptr : p_.hidden + b * p_.hidden_stride[0];
    for (int64_t j = 0; j < p_.keys; j += kBlockKeys) {
      const Range keys{j, min_of(j + kBlockKeys, p_.keys)};
      in_tiles([&](int64_t x, auto rows) { this->template score<decltype(rows)::value>(x, keys); });
    }
    for (int64_t x = 0; x < p_.rows; ++x) inverse_[x] = exponentials(x);
    for (int64_t i = 0; i < p_.rows * width_; i += kLanes) store(out_ + i, splat(0.0f));
    for (int64_t j = 0; j < p_.keys; j += kBlockKeys) {
      const Range keys{j, min_of(j + kBlockKeys, p_.keys)};
      in_tiles([&](int64_t x, auto rows) { add_seen_values<decltype(rows)::value>(x, keys); });
    }
    for (int64_t x = 0; x < p_.rows; ++x) write_row(x, n, b);
  }

 private:
  using Scores::kSize, Scores::p_, Scores::width_, Scores::whole_, Scores::padded_;
  using Scores::scores_, Scores::first_;
  static constexpr int64_t kBlockKeys = 64;
  static constexpr float kBlind = -1.0f;  // in place of a sum's inverse: the row sees no key

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
        Scores::ask_ahead_of(from + v * kLanes * kSize);
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
        const Vec columns =
            load_first<Type>(v_ + (j * p_.v.stride[2] + d) * kSize, p_.head_dim - d);
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

  float* const out_;                 // [x, width], before the division
  float* const inverse_;             // [x]: one over the sum of weights, or kBlind
  const char* v_ = nullptr;          // of the pair
  const uint8_t* hidden_ = nullptr;  // of the batch element, or null
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
