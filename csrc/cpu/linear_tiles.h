// X W^T + b with what follows it, a block of rows and one panel of columns at a time.
#pragma once

#include "row_io.h"

namespace xlnet_fast::cpu::XLNET_FAST_ISA {
namespace {

constexpr int64_t kPackedWords = 768;  // of a panel, which then stays in the second-level cache
// Words summed one after another; then such sums are. The longer the faster, by 2% from here to
// 384, and the less exact: MKL's fp32 products have the errors of 192.
constexpr int64_t kSummedWords = 192;
constexpr int kDotRows = kTileVectors, kDotColumns = kTileRows;  // accumulators, as in a tile

struct LinearScratch {
  float* panel;    // [kPackedWords, kPanel]
  float* results;  // [kLinearRows, kPanel]

  static constexpr int64_t bytes() { return (kPackedWords + kLinearRows) * kPanel * 4; }
  static LinearScratch in(char* memory) {
    auto* floats = reinterpret_cast<float*>(memory);
    return {floats, floats + kPackedWords * kPanel};
  }
};

// x Phi(x), by 7.1.26 of Abramowitz and Stegun for erfc, whose error of 1.5e-7 is ATen's too.
XLNET_FAST_INLINE Vec gelu_of(Vec x) {
  const Vec size = select(x < splat(0.0f), -x, x);
  const Vec z = size * splat(0.70710678f);
  const Vec t = splat(1.0f) / multiply_add(z, splat(0.3275911f), splat(1.0f));
  Vec p = multiply_add(t, splat(1.061405429f), splat(-1.453152027f));
  p = multiply_add(p, t, splat(1.421413741f));
  p = multiply_add(p, t, splat(-0.284496736f));
  p = multiply_add(p, t, splat(0.254829592f));
  const Vec outside = p * t * exp_of(-z * z);  // erfc(|x| / sqrt 2)
  // Zero from |x| = 15 on; so infinity is not multiplied by it.
  const Vec bounded = select(size < splat(15.0f), size, splat(15.0f));
  const Vec tail = splat(0.5f) * bounded * outside;
  return select(x < splat(0.0f), -tail, x - tail);
}

template <class Words>
struct RowTypeOf {
  using Type = Float32Row;
};
#if defined(XLNET_FAST_BF16)
template <>
struct RowTypeOf<BFloat16Pairs> {
  using Type = BFloat16Row;
};
#endif

struct WordRows {  // of a panel: a row of words is `step` words behind the one before
  const float* data;
  int64_t step;
};

template <class Words>
struct Linear {
  using Type = typename RowTypeOf<Words>::Type;
  const LinearParams& p;

  static const float* words(const char* data, int64_t element) {
    return reinterpret_cast<const float*>(data + element * (4 / Words::kElements));
  }
  int64_t terms() const { return p.terms / Words::kElements; }  // in words
  Left x() const {
    const int64_t step = p.x_term == 1 ? 1 : p.x_term / Words::kElements;
    return {words(p.x, 0), p.x_row / Words::kElements, step};
  }

  Row<Type> row_of(const char* data, int64_t start) const {
    const auto size = static_cast<int64_t>(sizeof(typename Type::Element));
    return {const_cast<char*>(data) + start * size, 0, {0, p.columns}};
  }

  // One vector of results, finished, to its place.
  XLNET_FAST_INLINE void finish(Vec sum, int64_t i, int64_t column) const {
    if (p.bias != nullptr) sum += row_of(p.bias, 0).load(column);
    if (p.gelu) sum = gelu_of(sum);
    if (p.residual != nullptr) sum += row_of(p.residual, i * p.residual_row).load(column);
    row_of(p.out, i * p.out_row).store(column, sum);
  }

  // Words `depth` of the weight for columns from `first` on, of which there are `columns`.
  void pack(int64_t first, int64_t columns, Range depth, float* panel) const {
    if (p.weight_term == 1) {
      for (int64_t j = 0; j < columns; j += kLanes) {
        const float* rows[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) {
          const int64_t column = first + min_of(j + lane, columns - 1);
          rows[lane] = words(p.weight, column * p.weight_column) + depth.begin;
        }
        put_columns(rows, depth.size(), j, columns, panel);
      }
      return;
    }
    const auto* elements = reinterpret_cast<const Element<Words>*>(p.weight);
    for (int64_t k = 0; k < depth.size(); ++k) {
      const Element<Words>* row =
          elements + (depth.begin + k) * Words::kElements * p.weight_term + first;
      put_word_row(row, row + (Words::kElements - 1) * p.weight_term, k, depth.size(), columns,
                   panel);
    }
  }

  // Rows i .. i + kRows of a panel, from `depth` words of it; `partial` has what the words before
  // gave, and takes the sums unless these words are the last.
  template <int kRows, int kVectors>
  void tile(Range depth, WordRows panel, int64_t i, int64_t first, float* partial) const {
    Vec sums[kRows][kVectors];
    for (int64_t k = depth.begin; k < depth.end; k += kSummedWords) {
      const int64_t words = min_of(kSummedWords, depth.end - k);
      Vec c[kRows][kVectors];
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kVectors; ++v) c[r][v] = splat(0.0f);
      }
      accumulate_tile<Words>(c, from(x(), i, k), panel.data, words, panel.step);
      panel.data += words * panel.step;
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kVectors; ++v) {
          sums[r][v] = k == depth.begin ? c[r][v] : sums[r][v] + c[r][v];
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        float* at = partial + r * kPanel + v * kLanes;
        const Vec sum = depth.begin == 0 ? sums[r][v] : load(at) + sums[r][v];
        if (depth.end < terms()) {
          store(at, sum);
        } else {
          finish(sum, i + r, first + v * kLanes);
        }
      }
    }
  }

  template <int kRows>
  void strip(int vectors, Range depth, WordRows panel, int64_t i, int64_t first,
             float* partial) const {
    switch (vectors) {
      case 1:
        return tile<kRows, 1>(depth, panel, i, first, partial);
#if XLNET_FAST_TILES > 2
      case 2:
        return tile<kRows, 2>(depth, panel, i, first, partial);
      case 3:
        return tile<kRows, 3>(depth, panel, i, first, partial);
#endif
      default:
        return tile<kRows, kTileVectors>(depth, panel, i, first, partial);
    }
  }

  // The panel of a weight whose words lie in rows already, which packing would only copy.
  bool lies_in_panels(int64_t columns) const {
    return p.rows < kLeastPackedRows && Words::kElements == 1 && p.weight_column == 1 &&
           columns == kPanel;
  }

  void many_rows(Range rows, int64_t first, LinearScratch scratch) const {
    const int64_t columns = min_of(kPanel, p.columns - first);
    const int vectors = vectors_at(0, columns);
    for (int64_t k = 0; k < terms(); k += kPackedWords) {
      const Range depth{k, min_of(k + kPackedWords, terms())};
      WordRows panel{scratch.panel, vectors * kLanes};
      if (lies_in_panels(columns)) {
        panel = {words(p.weight, k * p.weight_term + first), p.weight_term};
      } else {
        pack(first, columns, depth, scratch.panel);
      }
      int64_t i = rows.begin;
      float* partial = scratch.results;
      for (; i + kTileRows <= rows.end; i += kTileRows, partial += kTileRows * kPanel) {
        strip<kTileRows>(vectors, depth, panel, i, first, partial);
      }
      for (; i < rows.end; ++i, partial += kPanel) {
        strip<1>(vectors, depth, panel, i, first, partial);
      }
    }
  }

  // Results of kRows rows and kColumns columns as inner products, both operands read as they lie.
  template <int kRows, int kColumns>
  void dot_tile(int64_t i, int64_t column, float* results) const {
    Vec sums[kRows][kColumns];
    const float* x[kRows];
    const float* w[kColumns];
    for (int r = 0; r < kRows; ++r) {
      x[r] = words(p.x, (i + r) * p.x_row);
      for (int c = 0; c < kColumns; ++c) sums[r][c] = splat(0.0f);
    }
    for (int c = 0; c < kColumns; ++c) w[c] = words(p.weight, (column + c) * p.weight_column);
    int64_t k = 0;
    for (; k + kLanes <= terms(); k += kLanes) {
      Vec a[kRows];
      for (int r = 0; r < kRows; ++r) a[r] = load(x[r] + k);
      for (int c = 0; c < kColumns; ++c) {
        const Vec b = load(w[c] + k);
        for (int r = 0; r < kRows; ++r) sums[r][c] = Words::multiply_add(a[r], b, sums[r][c]);
      }
    }
    for (int c = 0; c < kColumns && k < terms(); ++c) {
      const Vec b = last_words(w[c] + k, terms() - k);
      for (int r = 0; r < kRows; ++r) {
        sums[r][c] = Words::multiply_add(last_words(x[r] + k, terms() - k), b, sums[r][c]);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kColumns; ++c) results[r * kPanel + c] = sum_of(sums[r][c]);
    }
  }

  // As many words as there are, fewer than a vector, and zeros.
  static XLNET_FAST_INLINE Vec last_words(const float* p, int64_t count) {
    float padded[kLanes] = {};
    __builtin_memcpy(padded, p, static_cast<size_t>(count) * 4);
    return load(padded);
  }

  template <int kRows>
  void dot_strip(int64_t i, int64_t first, float* results) const {
    const int64_t end = min_of(first + kPanel, p.columns);
    int64_t column = first;
    for (; column + kDotColumns <= end; column += kDotColumns) {
      dot_tile<kRows, kDotColumns>(i, column, results + (column - first));
    }
    for (; column < end; ++column) dot_tile<kRows, 1>(i, column, results + (column - first));
  }

  void few_rows(Range rows, int64_t first, LinearScratch scratch) const {
    int64_t i = rows.begin;
    for (; i + kDotRows <= rows.end; i += kDotRows) {
      dot_strip<kDotRows>(i, first, scratch.results + (i - rows.begin) * kPanel);
    }
    for (; i < rows.end; ++i) {
      dot_strip<1>(i, first, scratch.results + (i - rows.begin) * kPanel);
    }
  }

  void panel_of_rows(Range rows, int64_t first, LinearScratch scratch) const {
    if (p.rows >= kLeastPackedRows || p.x_term != 1 || p.weight_term != 1) {
      return many_rows(rows, first, scratch);
    }
    few_rows(rows, first, scratch);
    const int64_t columns = min_of(kPanel, p.columns - first);
    for (int64_t i = 0; i < rows.size(); ++i) {
      for (int64_t j = 0; j < columns; j += kLanes) {
        finish(load(scratch.results + i * kPanel + j), rows.begin + i, first + j);
      }
    }
  }
};

template <class Words>
void linear_panel(const LinearParams& p, Range rows, int64_t panel, char* memory) {
  Linear<Words>{p}.panel_of_rows(rows, panel * kPanel, LinearScratch::in(memory));
}

}  // namespace
}  // namespace xlnet_fast::cpu::XLNET_FAST_ISA
