// Which keys the rows of a tile see, as sets of columns, made before the scores need the registers.
//
// What is the same for all rows is looked at once a warp: a lane looks at one or two keys, and a
// ballot gives all lanes the set. Each part of a mask has a pass of its own, which a block takes or
// leaves as a whole.
#pragma once

#include "attention.cuh"

namespace xlnet_fast::cuda {

// A set of columns of one row. A thread holds it shifted by the first of its own columns: column
// 8 * n + 2 * t + e is bit 8 * (n % 4) + e of word n / 4. Sixteen columns fill half a word.
template <int Tiles>
struct ColumnSet {
  static constexpr int kWords = (Tiles + 3) / 4;
  uint32_t word[kWords];

  // The column that a lane looks at for the others; lanes beyond the columns look at one again.
  XLNET_FAST_DEVICE static int of_lane(int w, int lane) {
    return Tiles % 4 == 0 ? 32 * w + lane : lane % (8 * Tiles);
  }

  XLNET_FAST_DEVICE bool has(int n, int e) const {
    return (word[n / 4] >> (8 * (n % 4) + e % 2) & 1) != 0;
  }
  XLNET_FAST_DEVICE void remove(int n, int e) { word[n / 4] &= ~(1u << (8 * (n % 4) + e % 2)); }
  XLNET_FAST_DEVICE void add(int n, int e) { word[n / 4] |= 1u << (8 * (n % 4) + e % 2); }
};

// Of the scores that a thread holds: whether the row sees the key, and whether their segments
// differ. What it says of keys that do not exist is that they are not seen, and nothing of their
// segments.
template <int Tiles>
struct Mask {
  ColumnSet<Tiles> visible[2], other_segment[2];

  XLNET_FAST_DEVICE bool is_visible(int n, int e) const { return visible[e / 2].has(n, e); }
  XLNET_FAST_DEVICE bool is_other_segment(int n, int e) const {
    return other_segment[e / 2].has(n, e);
  }
};

// Of the 32 columns of a word those below `count`, which counts from column 0 of the tile.
XLNET_FAST_DEVICE uint32_t columns_below(int count, int word) {
  const int n = count - 32 * word;
  return n <= 0 ? 0u : n >= 32 ? 0xffffffffu : (1u << n) - 1;
}

// What a mask has for a row, of a table [b, row].
template <class TheRows>
XLNET_FAST_DEVICE void numbers_of_rows(int (&x)[2], const TheRows& rows, const int32_t* table) {
  x[0] = load(table + rows.row_in_tables(0)), x[1] = load(table + rows.row_in_tables(1));
}

// Column c is key j0 + c, entry c of `metadata`.
template <int Tiles, class TheRows, class Metadata>
XLNET_FAST_DEVICE Mask<Tiles> make_mask(const TheRows& rows, const Head& head,
                                        const Metadata& metadata, int j0, const Place& at) {
  constexpr int kWords = ColumnSet<Tiles>::kWords;
  const AttentionStream& stream = rows.stream;
  Mask<Tiles> mask;
  const bool some_missing = head.padded() || j0 + 8 * Tiles > head.keys();
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    uint32_t seen = 0xffffffffu;
    if (some_missing) seen = ballot(metadata.state(ColumnSet<Tiles>::of_lane(w, at.lane)) == kSeen);
    mask.visible[0].word[w] = mask.visible[1].word[w] = seen;
    mask.other_segment[0].word[w] = mask.other_segment[1].word[w] = 0;
  }
#pragma unroll
  for (int upper = 0; upper < 2; ++upper) {
    const int position = rows.position(upper);
    const int self = position + head.memory() - j0;  // the column of the row's own key
    ColumnSet<Tiles>& visible = mask.visible[upper];
    if (stream.causal) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        visible.word[w] &= columns_below(self + 1, w);
        if (stream.same_length) visible.word[w] &= ~columns_below(position - j0, w);
      }
    }
    if (Limits::any(stream)) {
      const Limits limits = Limits::of(stream, head.keys());
      const int begin = limits.begin(position, head.memory()) - j0;
      const int end = limits.end(position, head.memory()) - j0;
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        visible.word[w] &= columns_below(end, w) & ~columns_below(begin, w);
      }
    }
    if (stream.bits != nullptr) {
      const int64_t row_bytes = (head.all.keys + 7) / 8;
      const uint8_t* bits =
          stream.bits + rows.b * stream.bits_batch_stride + rows.row_in_table(upper) * row_bytes;
#pragma unroll
      for (int n = 0; n < Tiles; ++n) {
        const int byte = j0 / 8 + n;
        const uint32_t hidden = byte < row_bytes ? load(bits + byte) : 0u;
        visible.word[n / 4] &= ~(hidden << (8 * (n % 4)));
      }
    }
  }
  if (head.segmented()) {
    int segment[2], of_key[kWords];
    numbers_of_rows(segment, rows, stream.segments);
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      of_key[w] = metadata.segment(ColumnSet<Tiles>::of_lane(w, at.lane));
    }
    // The rows of a warp have few segments: one round for each.
    bool done[2] = {false, false};
    for (uint32_t waiting = 0xffffffffu; waiting != 0; waiting = ballot(!done[0] || !done[1])) {
      const int value = shuffle(done[0] ? segment[1] : segment[0], lowest_bit(waiting));
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        const uint32_t other = ballot(of_key[w] != value);
#pragma unroll
        for (int upper = 0; upper < 2; ++upper) {
          if (segment[upper] == value) mask.other_segment[upper].word[w] = other;
        }
      }
      done[0] = done[0] || segment[0] == value, done[1] = done[1] || segment[1] == value;
    }
  }
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      mask.visible[upper].word[w] >>= 2 * at.t, mask.other_segment[upper].word[w] >>= 2 * at.t;
    }
  }
  if (stream.rank_q != nullptr) {
    int rank[2];
    numbers_of_rows(rank, rows, stream.rank_q);
    for_each_score<Tiles>([&](int n, int e) {
      const int of_key = metadata.rank(8 * n + 2 * at.t + e % 2);
      if (of_key >= rank[e / 2]) mask.visible[e / 2].remove(n, e);
    });
  }
  if (stream.see_self) unmask_own_keys(mask, rows, head.memory() - j0, at);
  return mask;
}

// Makes each row's own key visible, which is column `offset` plus its position, and only one
// lane's.
template <int Tiles, class TheRows>
XLNET_FAST_DEVICE void unmask_own_keys(Mask<Tiles>& mask, const TheRows& rows, int offset,
                                       const Place& at) {
#pragma unroll
  for (int upper = 0; upper < 2; ++upper) {
    const int self = offset + rows.position(upper);
#pragma unroll
    for (int w = 0; w < ColumnSet<Tiles>::kWords; ++w) {
      const uint32_t own = columns_below(self + 1, w) & ~columns_below(self, w);
      mask.visible[upper].word[w] |= own >> (2 * at.t);
    }
  }
}

// The same where column c of a row is key j0 + c + its position. Entry j - first of `metadata` is
// that of key j. Each row has keys of its own, so each score is looked at by itself.
template <int Tiles, class TheRows, class Metadata>
XLNET_FAST_DEVICE Mask<Tiles> make_shifted_mask(const TheRows& rows, const Head& head,
                                                const Metadata& metadata, int first, int j0,
                                                const Place& at) {
  const AttentionStream& stream = rows.stream;
  Mask<Tiles> mask;
#pragma unroll
  for (int w = 0; w < ColumnSet<Tiles>::kWords; ++w) {
    mask.visible[0].word[w] = mask.visible[1].word[w] = 0xffffffffu;
    mask.other_segment[0].word[w] = mask.other_segment[1].word[w] = 0;
  }
  const auto key = [&](int n, int e) {
    return j0 + 8 * n + 2 * at.t + e % 2 + rows.position(e / 2);
  };
  for_each_score<Tiles>([&](int n, int e) {
    if (metadata.state(key(n, e) - first) != kSeen) mask.visible[e / 2].remove(n, e);
  });
  if (head.segmented()) {
    int segment[2];
    numbers_of_rows(segment, rows, stream.segments);
    for_each_score<Tiles>([&](int n, int e) {
      if (metadata.segment(key(n, e) - first) != segment[e / 2])
        mask.other_segment[e / 2].add(n, e);
    });
  }
  if (stream.rank_q != nullptr) {
    int rank[2];
    numbers_of_rows(rank, rows, stream.rank_q);
    for_each_score<Tiles>([&](int n, int e) {
      if (metadata.rank(key(n, e) - first) >= rank[e / 2]) mask.visible[e / 2].remove(n, e);
    });
  }
  if (stream.causal) {
    for_each_score<Tiles>([&](int n, int e) {
      const int j = key(n, e), position = rows.position(e / 2);
      const bool early = stream.same_length && j < position;
      if (j > position + head.memory() || early) mask.visible[e / 2].remove(n, e);
    });
  }
  if (Limits::any(stream)) {
    const Limits limits = Limits::of(stream, head.keys());
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {  // what hides by distance, hides columns
      const int position = rows.position(upper), first_column = j0 + position;
      const int begin = limits.begin(position, head.memory()) - first_column;
      const int end = limits.end(position, head.memory()) - first_column;
#pragma unroll
      for (int w = 0; w < ColumnSet<Tiles>::kWords; ++w) {
        const uint32_t inside = columns_below(end, w) & ~columns_below(begin, w);
        mask.visible[upper].word[w] &= inside >> (2 * at.t);
      }
    }
  }
  if (stream.bits != nullptr) {
    const int64_t row_bytes = (head.all.keys + 7) / 8;
    const uint8_t* bits = stream.bits + rows.b * stream.bits_batch_stride;
    for_each_score<Tiles>([&](int n, int e) {
      const int j = key(n, e);
      if (j < 0 || j >= head.keys()) return;
      const uint8_t byte = load(bits + rows.row_in_table(e / 2) * row_bytes + j / 8);
      if ((byte >> (j % 8) & 1) != 0) mask.visible[e / 2].remove(n, e);
    });
  }
  if (stream.see_self) {
    for_each_score<Tiles>([&](int n, int e) {
      if (key(n, e) == rows.position(e / 2) + head.memory()) mask.visible[e / 2].add(n, e);
    });
  }
  return mask;
}

}  // namespace xlnet_fast::cuda
