// X W^T + b with what follows it, a block of rows and one panel of columns at a time; few rows as
// in linear_few_rows.h.
#pragma once

#include "linear_few_rows.h"

namespace xlnet_fast::cpu::XLNET_FAST_ISA {
namespace {

struct LinearScratch {
  float* panel;    // [kPackedWords, kPanel]
  float* results;  // [kLinearRows, kPanel]

  static constexpr int64_t bytes() {
    return max_of((kPackedWords + kLinearRows) * kPanel * 4, few_rows_bytes());
  }
  static LinearScratch in(char* memory) {
    auto* floats = reinterpret_cast<float*>(memory);
    return {floats, floats + kPackedWords * kPanel};
  }
};

template <class Words>
struct ManyRows {
  const LinearOperands<Words>& of;

  // Words `depth` of the weight for columns from `first` on, of which there are `columns`.
  void pack(int64_t first, int64_t columns, Range depth, float* panel) const {
    if (of.p.weight_term == 1) {
      for (int64_t j = 0; j < columns; j += kLanes) {
        const float* rows[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) {
          rows[lane] = of.column_at(first + min_of(j + lane, columns - 1), depth.begin);
        }
        put_columns(rows, depth.size(), j, columns, panel);
      }
      return;
    }
    for (int64_t k = 0; k < depth.size(); ++k) {
      const Element<Words>* row = of.row_at(depth.begin + k, first);
      put_word_row(row, row + of.odd_row(), k, depth.size(), columns, panel);
    }
  }

  // Rows i .. i + kRows of a panel, from `depth` words of it; `partial` has what the words before
  // gave, and takes the sums unless these words are the last.
  template <int kRows, int kVectors>
  void tile(Range depth, const float* panel, int64_t i, int64_t first, float* partial) const {
    Vec sums[kRows][kVectors];
    for (int r = 0; r < kRows && depth.begin > 0; ++r) {
      for (int v = 0; v < kVectors; ++v) sums[r][v] = load(partial + r * kPanel + v * kLanes);
    }
    for (int64_t k = depth.begin; k < depth.end; k += kSummedWords) {
      const int64_t words = min_of(kSummedWords, depth.end - k);
      Vec c[kRows][kVectors];
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kVectors; ++v) c[r][v] = splat(0.0f);
      }
      accumulate_tile<Words>(c, from(of.x(), i, k), panel, words);
      panel += words * kVectors * kLanes;
      for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kVectors; ++v) sums[r][v] = k == 0 ? c[r][v] : sums[r][v] + c[r][v];
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        if (depth.end < of.terms()) {
          store(partial + r * kPanel + v * kLanes, sums[r][v]);
        } else {
          of.finish(sums[r][v], i + r, first + v * kLanes);
        }
      }
    }
  }

  template <int kRows>
  void strip(int vectors, Range depth, const float* panel, int64_t i, int64_t first,
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

  void multiply(Range rows, int64_t first, LinearScratch scratch) const {
    const int64_t columns = min_of(kPanel, of.p.columns - first);
    const int vectors = vectors_at(0, columns);
    for (int64_t k = 0; k < of.terms(); k += kPackedWords) {
      const Range depth{k, min_of(k + kPackedWords, of.terms())};
      pack(first, columns, depth, scratch.panel);
      int64_t i = rows.begin;
      float* partial = scratch.results;
      for (; i + kTileRows <= rows.end; i += kTileRows, partial += kTileRows * kPanel) {
        strip<kTileRows>(vectors, depth, scratch.panel, i, first, partial);
      }
      for (; i < rows.end; ++i, partial += kPanel) {
        strip<1>(vectors, depth, scratch.panel, i, first, partial);
      }
    }
  }
};

template <class Words>
void linear_columns(const LinearParams& p, Range rows, Range columns, char* memory) {
  const LinearOperands<Words> of{p};
  if (p.rows < kLeastPackedRows) return few_rows(of, rows, columns, memory);
  for (int64_t first = columns.begin; first < columns.end; first += kPanel) {
    ManyRows<Words>{of}.multiply(rows, first, LinearScratch::in(memory));
  }
}

}  // namespace
}  // namespace xlnet_fast::cpu::XLNET_FAST_ISA
