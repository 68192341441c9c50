// X W^T + b of few rows, where reading the weight is most of the work: it is read once, in long
// pieces, and lines are asked for before their turn. What is asked for goes to the second-level
// cache: in the first it would drive out X.
//
// A result has the same bits whatever number of rows it is computed with.
#pragma once

#include "linear_operands.h"

namespace xlnet_fast::cpu::XLNET_FAST_ISA {
namespace {

constexpr bool kManyRegisters = kLanes == 16;  // 32 of them; else 16
constexpr int64_t kLineWords = 16;

XLNET_FAST_INLINE void ask_for(const float* line) { __builtin_prefetch(line, 0, 2); }

// How many groups of at most `most` rows there are, and which rows one of them has.
constexpr int64_t groups_of(int64_t rows, int64_t most) { return (rows + most - 1) / most; }
constexpr Range group_at(int64_t group, int64_t groups, int64_t rows) {
  return {rows * group / groups, rows * (group + 1) / groups};
}

// As many words as there are, fewer than a vector, and zeros.
XLNET_FAST_INLINE Vec last_words(const float* p, int64_t count) {
  float padded[kLanes] = {};
  __builtin_memcpy(padded, p, static_cast<size_t>(count) * 4);
  return load(padded);
}

// ---- the terms of a column are contiguous: inner products ----

constexpr int kDotRows = kManyRegisters ? 8 : 4;  // of a tile, at most
constexpr int64_t kDotWords = 768;                // of a tile, at most: its rows of X stay in L1
constexpr int64_t kDotBlock = 48;                 // columns: a multiple of those of every tile

// Columns of a tile: as many as there are registers for the sums, beside the operands.
constexpr int dot_columns(int rows) {
  if (!kManyRegisters) return rows == 1 ? 8 : rows == 2 ? 6 : rows == 3 ? 4 : 3;
  return rows <= 3 ? 8 : rows == 4 ? 6 : rows <= 6 ? 4 : 3;
}

template <class Words>
struct DotRows {
  const LinearOperands<Words>& of;
  int64_t rows, width;  // of results
  float* results;       // [rows, width]
  float* x;             // groups of [kDotWords / kLanes, rows of the group, kLanes]

  // Rows `group` of X, vector by vector: a tile reads them as they lie.
  void interleave(Range group, Range depth, float* to) const {
    const Left x_words = of.x();
    for (int64_t i = group.begin; i < group.end; ++i) {
      const Left row = from(x_words, i, depth.begin);
      float* at = to + (i - group.begin) * kLanes;
      int64_t k = 0;
      for (; row.word == 1 && k + kLanes <= depth.size();
           k += kLanes, at += group.size() * kLanes) {
        store(at, load(row.data + k));
      }
      for (; k < depth.size(); k += kLanes, at += group.size() * kLanes) {
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          const bool there = k + lane < depth.size();
          at[lane] = there ? word_at(row.data + (k + lane) * row.word) : 0.0f;
        }
      }
    }
  }

  template <int kRows, int kColumns>
  static XLNET_FAST_INLINE void multiply(Vec (&sums)[kRows][kColumns], const float* x_step,
                                         const Vec (&w)[kColumns]) {
    if (kRows <= kColumns) {
      Vec a[kRows];
      XLNET_FAST_UNROLL(8)
      for (int r = 0; r < kRows; ++r) a[r] = load(x_step + r * kLanes);
      XLNET_FAST_UNROLL(8)
      for (int c = 0; c < kColumns; ++c) {
        XLNET_FAST_UNROLL(8)
        for (int r = 0; r < kRows; ++r) sums[r][c] = Words::multiply_add(a[r], w[c], sums[r][c]);
      }
      return;
    }
    XLNET_FAST_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      Vec a = load(x_step + r * kLanes);
      keep_in_register(a);
      XLNET_FAST_UNROLL(8)
      for (int c = 0; c < kColumns; ++c) sums[r][c] = Words::multiply_add(a, w[c], sums[r][c]);
    }
  }

  // Adds, or with `first` writes, the products of `count` words of kRows rows and kColumns columns.
  template <int kRows, int kColumns>
  void tile(const float* x_group, const float* w, int64_t step, const float* ahead, int64_t count,
            bool first, float* to) const {
    Vec sums[kRows][kColumns];
    XLNET_FAST_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      XLNET_FAST_UNROLL(8)
      for (int c = 0; c < kColumns; ++c) sums[r][c] = splat(0.0f);
    }
    int64_t k = 0;
    for (; k + kLanes <= count; k += kLanes) {
      if (kLanes == kLineWords || k % kLineWords == 0) {
        XLNET_FAST_UNROLL(8)
        for (int c = 0; c < kColumns; ++c) ask_for(ahead + c * step + k);
      }
      Vec b[kColumns];
      XLNET_FAST_UNROLL(8)
      for (int c = 0; c < kColumns; ++c) b[c] = load(w + c * step + k);
      multiply<kRows, kColumns>(sums, x_group + k * kRows, b);
    }
    if (k < count) {
      Vec b[kColumns];
      XLNET_FAST_UNROLL(8)
      for (int c = 0; c < kColumns; ++c) b[c] = last_words(w + c * step + k, count - k);
      multiply<kRows, kColumns>(sums, x_group + k * kRows, b);
    }
    constexpr int kSums = kRows * kColumns;
    float totals[(kSums + kLanes - 1) / kLanes * kLanes];
    XLNET_FAST_UNROLL(8)
    for (int at = 0; at < kSums; at += kLanes) {
      Vec some[kLanes];
      XLNET_FAST_UNROLL(16)
      for (int i = 0; i < kLanes; ++i) {
        const int which = at + i < kSums ? at + i : 0;
        some[i] = sums[which / kColumns][which % kColumns];
      }
      store(totals + at, sums_of(some));
    }
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kColumns; ++c) {
        float& result = to[r * width + c];
        result = first ? totals[r * kColumns + c] : result + totals[r * kColumns + c];
      }
    }
  }

  // Where the words are that are read a block of columns later. `columns` are all that are read;
  // after the last of their words come the columns behind them.
  const float* ahead_of(int64_t column, Range columns, Range depth) const {
    const int64_t later = column + kDotBlock;
    if (later < columns.end) return of.column_at(later, depth.begin);
    if (depth.end < of.terms()) {
      return of.column_at(columns.begin + (later - columns.end), depth.end);
    }
    return of.column_at(later < of.p.columns ? later : column,
                        later < of.p.columns ? 0 : depth.begin);
  }

  template <int kRows>
  void strip(Range asked, Range columns, Range part, Range depth, const float* x_group,
             float* to) const {
    const int64_t step = of.p.weight_column / Words::kElements;
    const bool first = depth.begin == 0;
    constexpr int kColumns = dot_columns(kRows);
    int64_t column = part.begin;
    for (; column + kColumns <= part.end; column += kColumns) {
      const float* w = of.column_at(column, depth.begin);
      const bool asks = asked.begin <= column && column < asked.end;
      const float* ahead = asks ? ahead_of(column, columns, depth) : w;
      tile<kRows, kColumns>(x_group, w, step, ahead, depth.size(), first,
                            to + (column - columns.begin));
    }
    for (; column < part.end; ++column) {
      const float* w = of.column_at(column, depth.begin);
      tile<kRows, 1>(x_group, w, step, w, depth.size(), first, to + (column - columns.begin));
    }
  }

  template <int kRows = kDotRows>
  void strip_of(int64_t count, Range asked, Range columns, Range part, Range depth,
                const float* x_group, float* to) const {
    if constexpr (kRows > 1) {
      if (count < kRows) {
        return strip_of<kRows - 1>(count, asked, columns, part, depth, x_group, to);
      }
    }
    strip<kRows>(asked, columns, part, depth, x_group, to);
  }

  void multiply(int64_t begin, Range columns) const {
    const int64_t groups = groups_of(rows, kDotRows), parts = groups_of(of.terms(), kDotWords);
    const int64_t longest = round_up(groups_of(of.terms(), parts), kLineWords);
    for (int64_t k = 0; k < of.terms(); k += longest) {
      const Range depth{k, min_of(k + longest, of.terms())};
      const int64_t padded = round_up(depth.size(), kLanes);
      for (int64_t g = 0; g < groups; ++g) {
        const Range group = group_at(g, groups, rows);
        interleave({begin + group.begin, begin + group.end}, depth, x + group.begin * padded);
      }
      for (int64_t block = columns.begin; block < columns.end; block += kDotBlock) {
        const Range part{block, min_of(block + kDotBlock, columns.end)};
        for (int64_t g = 0; g < groups; ++g) {  // each asks for its share of the next block
          const Range group = group_at(g, groups, rows), share = group_at(g, groups, kDotBlock);
          strip_of(group.size(), {block + share.begin, block + share.end}, columns, part, depth,
                   x + group.begin * padded, results + group.begin * width);
        }
      }
    }
  }
};

// ---- the columns of a term are contiguous: rows of W, times a word of X each, are added ----

constexpr int kSweepRows = kManyRegisters ? 8 : kTileRows;  // of a tile, at most
constexpr int64_t kSweepWords = 32;                         // rows of W that a tile reads, at most
static_assert(kSummedWords % kSweepWords == 0, "short sums end where a tile does");

// Vectors of a row of a tile.
constexpr int sweep_vectors(int64_t rows) { return rows > kTileRows ? 3 : kTileVectors; }

template <class Words>
struct SweepRows {
  const LinearOperands<Words>& of;
  int64_t rows, width;  // of results: all columns, and room for whole panels
  float* results;       // [rows, width]
  float* sums;          // [rows, width], each of at most kSummedWords
  float* x;             // [rows, kSweepWords]
  float* panel;         // [kSweepWords, kPanel]

  struct Step {  // words that are added at once
    int64_t begin, count;
    bool first, last;  // of a short sum
  };
  struct Panel {  // rows of words that are `step` apart, and those to ask for
    const float* data;
    int64_t step;
    const float* ahead;  // or null
  };

  template <int kRows>
  void tile(Step at, const float* x_group, Panel w, float* short_sums, float* to) const {
    constexpr int kVectors = sweep_vectors(kRows);
    Vec c[kRows][kVectors];
    XLNET_FAST_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      XLNET_FAST_UNROLL(4)
      for (int v = 0; v < kVectors; ++v) {
        c[r][v] = at.first ? splat(0.0f) : load(short_sums + r * width + v * kLanes);
      }
    }
    for (int64_t k = 0; k < at.count; ++k) {
      if (w.ahead != nullptr) {
        XLNET_FAST_UNROLL(4)
        for (int line = 0; line < kVectors * kLanes; line += kLineWords) ask_for(w.ahead + line);
        w.ahead += w.step;
      }
      Vec b[kVectors];
      XLNET_FAST_UNROLL(4)
      for (int v = 0; v < kVectors; ++v) b[v] = load(w.data + v * kLanes);
      w.data += w.step;
      XLNET_FAST_UNROLL(8)
      for (int r = 0; r < kRows; ++r) {
        Vec a = splat(word_at(x_group + r * kSweepWords + k));
        keep_in_register(a);
        XLNET_FAST_UNROLL(4)
        for (int v = 0; v < kVectors; ++v) c[r][v] = Words::multiply_add(a, b[v], c[r][v]);
      }
    }
    const bool alone = at.begin < kSummedWords;
    float* const home = at.last ? to : short_sums;
    XLNET_FAST_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      XLNET_FAST_UNROLL(4)
      for (int v = 0; v < kVectors; ++v) {
        float* const place = home + r * width + v * kLanes;
        store(place, at.last && !alone ? load(place) + c[r][v] : c[r][v]);
      }
    }
  }

  template <int kRows = kSweepRows>
  void tile_of(int64_t count, Step at, const float* x_group, Panel w, float* short_sums,
               float* to) const {
    if constexpr (kRows > 1) {
      if (count < kRows) return tile_of<kRows - 1>(count, at, x_group, w, short_sums, to);
    }
    tile<kRows>(at, x_group, w, short_sums, to);
  }

  // A step's words of X, which may lie in either order.
  void gather(int64_t begin, Step at) const {
    const Left x_words = of.x();
    for (int64_t i = 0; i < rows; ++i) {
      const Left row = from(x_words, begin + i, at.begin);
      for (int64_t k = 0; k < at.count; ++k)
        x[i * kSweepWords + k] = word_at(row.data + k * row.word);
    }
  }

  // What is read one step later at the place of `column`, or null: after the last words of
  // `columns` come the first ones of those behind them.
  const Element<Words>* ahead_of(Step at, int64_t column, Range columns, int64_t words) const {
    if (at.begin + at.count < of.terms()) return of.row_at(at.begin + words, column);
    const int64_t later = column - columns.begin + columns.end;
    return later < of.p.columns ? of.row_at(0, later) : nullptr;
  }

  // `count` columns as a panel `wide` columns wide, filled up with zeros.
  void pack(Step at, int64_t column, int64_t count, int64_t wide,
            const Element<Words>* ahead) const {
    for (int64_t k = 0; k < at.count; ++k) {
      for (int64_t i = 0; ahead != nullptr && i < Words::kElements; ++i) {
        for (int64_t j = 0; j < count; j += kLineWords * Words::kElements) {
          ask_for(reinterpret_cast<const float*>(ahead + j));
        }
        ahead += of.p.weight_term;
      }
      const Element<Words>* row = of.row_at(at.begin + k, column);
      put_panel_row(row, row + of.odd_row(), count, wide, panel + k * wide);
    }
  }

  void step(int64_t begin, Range columns, Step at, int64_t words) const {
    gather(begin, at);
    const int64_t groups = groups_of(rows, rows <= kSweepRows ? kSweepRows : kTileRows);
    const int64_t wide = sweep_vectors(group_at(groups - 1, groups, rows).size()) * kLanes;
    for (int64_t column = columns.begin; column < columns.end; column += wide) {
      const int64_t count = min_of(wide, columns.end - column);
      const Element<Words>* ahead = ahead_of(at, column, columns, words);
      Panel w{panel, wide, nullptr};
      if (Words::kElements == 1 && count == wide) {
        w = {reinterpret_cast<const float*>(of.row_at(at.begin, column)), of.p.weight_term,
             reinterpret_cast<const float*>(ahead)};
      } else {
        pack(at, column, count, wide, ahead);
      }
      for (int64_t g = 0; g < groups; ++g) {
        const Range group = group_at(g, groups, rows);
        const int64_t offset = group.begin * width + column - columns.begin;
        tile_of(group.size(), at, x + group.begin * kSweepWords, w, sums + offset,
                results + offset);
        w.ahead = nullptr;
      }
    }
  }

  void multiply(int64_t begin, Range columns) const {
    const int64_t words = rows <= 2 ? 8 : kSweepWords;
    for (int64_t k = 0; k < of.terms(); k += words) {
      const int64_t in_sum = k % kSummedWords, left = of.terms() - k;
      step(begin, columns,
           {k, min_of(words, left), in_sum == 0, in_sum + words == kSummedWords || left <= words},
           words);
    }
  }
};

constexpr int64_t few_rows_bytes() {  // results, and what DotRows or SweepRows has beside them
  constexpr int64_t kMost = kLeastPackedRows - 1;
  constexpr int64_t kSweeps = kFewResults + kMost * kSweepWords + kSweepWords * kPanel;
  return (kFewResults + max_of(kMost * kDotWords, kSweeps)) * 4;
}

// Rows and columns of the results, as many as kFewResults have room for.
template <class Words>
void few_rows(const LinearOperands<Words>& of, Range rows, Range columns, char* memory) {
  const int64_t width = round_up(columns.size(), kFewPanels * kPanel);
  auto* results = reinterpret_cast<float*>(memory);
  float* rest = results + kFewResults;
  if (of.p.weight_term == 1) {
    DotRows<Words>{of, rows.size(), width, results, rest}.multiply(rows.begin, columns);
  } else {
    float* x = rest + kFewResults;
    float* panel = x + (kLeastPackedRows - 1) * kSweepWords;
    SweepRows<Words>{of, rows.size(), width, results, rest, x, panel}.multiply(rows.begin, columns);
  }
  for (int64_t i = 0; i < rows.size(); ++i) {
    for (int64_t j = 0; j < columns.size(); j += kLanes) {
      of.finish(load(results + i * width + j), rows.begin + i, columns.begin + j);
    }
  }
}

}  // namespace
}  // namespace xlnet_fast::cpu::XLNET_FAST_ISA
