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

// How many pieces of at most `most` there are, and what is in one of them.
constexpr int64_t pieces_of(int64_t size, int64_t most) { return (size + most - 1) / most; }
constexpr Range piece_at(int64_t piece, int64_t pieces, int64_t size) {
  return {size * piece / pieces, size * (piece + 1) / pieces};
}

// As many words as there are, fewer than a vector, and zeros.
XLNET_FAST_INLINE Vec last_words(const float* p, int64_t count) {
  float padded[kLanes] = {};
  __builtin_memcpy(padded, p, static_cast<size_t>(count) * 4);
  return load(padded);
}

// ---- the terms of a column are contiguous: inner products ----

constexpr int kDotRows = kManyRegisters ? 8 : 4;  // of a tile, at most
// Of a tile, at most: sums of so many words are short chains on every set of instructions, and the
// rows of X stay in L1.
constexpr int64_t kDotWords = 48 * kLanes;
// Columns of which a tile takes every so many-th: neighbours would be in one page of memory, whose
// lines come one after another. A multiple of those of every tile.
constexpr int64_t kDotBlock = 48;

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
  float* x;             // [kFewRows * kDotWords], of groups of rows

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

  template <int kRows, int kColumns, int kBegin = 0>
  static XLNET_FAST_INLINE void total_of(const Vec (&sums)[kRows][kColumns], float* totals) {
    constexpr int kCount = static_cast<int>(min_of(kRows * kColumns - kBegin, kLanes));
    Vec some[kLanes];
    XLNET_FAST_UNROLL(16)
    for (int i = 0; i < kCount; ++i) {
      some[i] = sums[(kBegin + i) / kColumns][(kBegin + i) % kColumns];
    }
    store(totals + kBegin, sums_of<kCount>(some));
    if constexpr (kBegin + kCount < kRows * kColumns) {
      total_of<kRows, kColumns, kBegin + kCount>(sums, totals);
    }
  }

  // Adds, or with `first` writes, the products of `count` words of kRows rows and kColumns columns,
  // whose words are `step` apart and whose results `apart`.
  template <int kRows, int kColumns>
  void tile(const float* x_group, const float* w, int64_t step, const float* ahead, int64_t count,
            bool first, int64_t apart, float* to) const {
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
    float totals[round_up(kRows * kColumns, kLanes)];
    total_of<kRows, kColumns>(sums, totals);
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kColumns; ++c) {
        float& result = to[r * width + c * apart];
        result = first ? totals[r * kColumns + c] : result + totals[r * kColumns + c];
      }
    }
  }

  // Words that a tile sums: chosen by all there are, so that results do not depend on the rows.
  int64_t words_of_a_tile() const {
    const int64_t parts = pieces_of(of.terms(), kDotWords);
    return round_up(pieces_of(of.terms(), parts), kLineWords);
  }
  // Words of which X is held at once. Few rows may come from the second-level cache, so that a
  // column is read to its end before the next; what the CPU itself reads ahead is then of use.
  int64_t words_held() const {
    const int64_t most = words_of_a_tile(), room = kFewRows * kDotWords / rows;
    return rows <= 4 ? max_of(room / most, 1) * most : most;
  }

  // Columns `part` of the results. Words are asked for while those before are read, at the end
  // those of `next`.
  template <int kRows>
  void strip(Range part, Range depth, const float* x_group, const float* next, float* to) const {
    constexpr int kColumns = dot_columns(kRows);
    const int64_t apart = part.size() / kColumns, step = of.p.weight_column / Words::kElements;
    const int64_t most = words_of_a_tile();
    for (int64_t j = 0; j < apart; ++j) {
      const float* w = of.column_at(part.begin + j, 0);
      for (int64_t k = depth.begin; k < depth.end; k += most) {
        const float* ahead = k + most < depth.end ? w + k + most
                             : j + 1 < apart      ? w + depth.begin + step
                                                  : next;
        tile<kRows, kColumns>(x_group + (k - depth.begin) * kRows, w + k, apart * step, ahead,
                              min_of(most, depth.end - k), k == 0, apart, to + j);
      }
    }
    for (int64_t j = apart * kColumns; j < part.size(); ++j) {
      const float* w = of.column_at(part.begin + j, 0);
      for (int64_t k = depth.begin; k < depth.end; k += most) {
        tile<kRows, 1>(x_group + (k - depth.begin) * kRows, w + k, step, w + k,
                       min_of(most, depth.end - k), k == 0, 1, to + j);
      }
    }
  }

  template <int kRows = kDotRows>
  void strip_of(int64_t count, Range part, Range depth, const float* x_group, const float* next,
                float* to) const {
    if constexpr (kRows > 1) {
      if (count < kRows) return strip_of<kRows - 1>(count, part, depth, x_group, next, to);
    }
    strip<kRows>(part, depth, x_group, next, to);
  }

  // What is read after a block: the next columns, or the next words, or what another call reads.
  const float* next_of(int64_t block, Range columns, Range depth) const {
    const int64_t later = block + kDotBlock;
    if (later < columns.end) return of.column_at(later, depth.begin);
    if (depth.end < of.terms()) return of.column_at(columns.begin, depth.end);
    return of.column_at(later < of.p.columns ? later : block, 0);
  }

  void multiply(int64_t begin, Range columns) const {
    const int64_t groups = pieces_of(rows, kDotRows), held = words_held();
    for (int64_t k = 0; k < of.terms(); k += held) {
      const Range depth{k, min_of(k + held, of.terms())};
      const int64_t padded = round_up(depth.size(), kLanes);
      for (int64_t g = 0; g < groups; ++g) {
        const Range group = piece_at(g, groups, rows);
        interleave({begin + group.begin, begin + group.end}, depth, x + group.begin * padded);
      }
      for (int64_t block = columns.begin; block < columns.end; block += kDotBlock) {
        const Range part{block, min_of(block + kDotBlock, columns.end)};
        const float* next = next_of(block, columns, depth);
        for (int64_t g = 0; g < groups; ++g) {
          const Range group = piece_at(g, groups, rows);
          strip_of(group.size(), part, depth, x + group.begin * padded, next,
                   results + group.begin * width + block - columns.begin);
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
  struct Panel {                  // of a step's words
    const Element<Words>* row;    // as they lie, rows weight_term apart
    const Element<Words>* ahead;  // a like place to ask for, or null
    const float* packed;          // or null
  };

  template <int kRows, bool kPacked>
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
    const int64_t step = Words::kElements * of.p.weight_term;
    for (int64_t k = 0; k < at.count; ++k) {
      Vec b[kVectors];
      if constexpr (kPacked) {
        load_words(b, w.packed, w.packed);
        w.packed += kVectors * kLanes;
      } else {
        if (w.ahead != nullptr) ask(w.ahead, kVectors * kLanes);
        w.ahead += w.ahead != nullptr ? step : 0;
        load_words(b, w.row, w.row + of.odd_row());
        w.row += step;
      }
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
    if (w.packed != nullptr) {
      tile<kRows, true>(at, x_group, w, short_sums, to);
    } else {
      tile<kRows, false>(at, x_group, w, short_sums, to);
    }
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

  // `count` elements of every row of a word.
  XLNET_FAST_INLINE void ask(const Element<Words>* ahead, int64_t count) const {
    for (int64_t i = 0; i < Words::kElements; ++i) {
      for (int64_t j = 0; j < count; j += kLineWords * Words::kElements) {
        ask_for(reinterpret_cast<const float*>(ahead + i * of.p.weight_term + j));
      }
    }
  }

  // `count` columns as a panel `wide` columns wide, filled up with zeros.
  void pack(Step at, Panel w, int64_t count, int64_t wide) const {
    for (int64_t k = 0; k < at.count; ++k) {
      const int64_t down = k * Words::kElements * of.p.weight_term;
      if (w.ahead != nullptr) ask(w.ahead + down, count);
      put_panel_row(w.row + down, w.row + down + of.odd_row(), count, wide, panel + k * wide);
    }
  }

  void step(int64_t begin, Range columns, Step at, int64_t words) const {
    gather(begin, at);
    const int64_t groups = pieces_of(rows, rows <= kSweepRows ? kSweepRows : kTileRows);
    const int64_t wide = sweep_vectors(piece_at(groups - 1, groups, rows).size()) * kLanes;
    for (int64_t column = columns.begin; column < columns.end; column += wide) {
      const int64_t count = min_of(wide, columns.end - column);
      Panel w{of.row_at(at.begin, column), ahead_of(at, column, columns, words), nullptr};
      if (count < wide || (Words::kElements > 1 && groups > 1)) {
        pack(at, w, count, wide);
        w.packed = panel;
      }
      for (int64_t g = 0; g < groups; ++g) {
        const Range group = piece_at(g, groups, rows);
        const int64_t offset = group.begin * width + column - columns.begin;
        tile_of(group.size(), at, x + group.begin * kSweepWords, w, sums + offset,
                results + offset);
        w.ahead = nullptr;
      }
    }
  }

  void multiply(int64_t begin, Range columns) const {
    const int64_t words = rows <= 2 ? 8 : kSweepWords / Words::kElements;
    for (int64_t k = 0; k < of.terms(); k += words) {
      const int64_t in_sum = k % kSummedWords, left = of.terms() - k;
      step(begin, columns,
           {k, min_of(words, left), in_sum == 0, in_sum + words == kSummedWords || left <= words},
           words);
    }
  }
};

constexpr int64_t few_rows_bytes() {  // results, and what DotRows or SweepRows has beside them
  constexpr int64_t kSweeps = kFewResults + kFewRows * kSweepWords + kSweepWords * kPanel;
  return (kFewResults + max_of(kFewRows * kDotWords, kSweeps)) * 4;
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
    float* panel = x + kFewRows * kSweepWords;
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
