// One head of one batch element, packed for products: keys, values, rows of r, and what the mask
// needs of the keys.
#pragma once

#include "pack.h"

namespace xlnet_fast::cpu::XLNET_FAST_ISA {
namespace {

// Hands out parts of one block of memory, each on a cache line of its own. Without memory it only
// counts.
class Arena {
 public:
  explicit Arena(char* memory) : memory_(memory) {}

  template <class T>
  T* take(int64_t count) {
    char* at = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return reinterpret_cast<T*>(at);
  }

  bool counting() const { return memory_ == nullptr; }
  int64_t used() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

XLNET_FAST_INLINE char* at(const View& view, Dtype dtype, int64_t i0, int64_t i1, int64_t i2) {
  return view.data +
         (i0 * view.stride[0] + i1 * view.stride[1] + i2 * view.stride[2]) * size_of(dtype);
}

// Sizes of a call that all its parts share.
struct Sizes {
  int64_t dim, keys, current, table;  // D, J, L, rows of r that are packed
  int64_t padded_keys;                // J in whole panels

  explicit Sizes(const AttentionKeys& k)
      : dim(k.head_dim),
        keys(k.keys),
        current(k.keys - k.memory),
        table(current + k.keys),
        padded_keys(round_up(k.keys, kPanel)) {}
};

// What one head's keys give: panels for products over d ("columns") and over j or p ("rows").
template <class Words>
class Head {
 public:
  // Rows of k and r, and columns of v, are for the backward pass.
  Head(const AttentionKeys& keys, bool backward, Arena& arena)
      : keys_(keys), sizes_(keys), backward_(backward), depth_(words_of<Words>(keys.head_dim)) {
    const int64_t row_depth = words_of<Words>(sizes_.keys),
                  table_depth = words_of<Words>(sizes_.table);
    k_columns_ = arena.take<float>(panel_words(depth_, sizes_.keys));
    v_rows_ = arena.take<float>(panel_words(row_depth, sizes_.dim));
    r_columns_ = arena.take<float>(panel_words(depth_, sizes_.table));
    if (backward_) {
      k_rows_ = arena.take<float>(panel_words(row_depth, sizes_.dim));
      v_columns_ = arena.take<float>(panel_words(depth_, sizes_.keys));
      r_rows_ = arena.take<float>(panel_words(table_depth, sizes_.dim));
    }
    const int64_t elements = depth_ * Words::kElements;
    block_ = arena.take<Element<Words>>(kLanes * elements);
    zeros_ = arena.take<Element<Words>>(elements);
    scratch_ = arena.take<float>(sizes_.dim);
    padding_ = arena.take<int32_t>(sizes_.padded_keys);
    ranks_ = arena.take<int32_t>(sizes_.padded_keys);
    segments_ = arena.take<int32_t>(sizes_.padded_keys);
    if (arena.counting()) return;
    for (int64_t d = 0; d < elements; ++d) zeros_[d] = 0;
  }

  // Packs what changed since the last call.
  void select(int64_t b, int64_t n) {
    const int64_t group = b * keys_.groups / keys_.batch;
    const bool same_table = n == n_ || keys_.r.stride[2] == 0;  // of all heads
    if (group != group_ || !same_table) pack_table(group, n);
    if (b != b_ || n != n_) pack_keys(b, n);
    if (b != b_) read_codes(b);
    group_ = group;
    b_ = b;
    n_ = n;
  }

  Right k_columns() const { return {k_columns_, depth_}; }
  Right v_columns() const { return {v_columns_, depth_}; }
  Right r_columns() const { return {r_columns_, depth_}; }
  Right k_rows(int64_t key) const { return rows(k_rows_, sizes_.keys, key); }
  Right v_rows(int64_t key) const { return rows(v_rows_, sizes_.keys, key); }
  Right r_rows(int64_t p) const { return rows(r_rows_, sizes_.table, p); }
  const int32_t* padding() const { return padding_; }  // all ones where the key is hidden
  const int32_t* ranks() const { return ranks_; }
  const int32_t* segments() const { return segments_; }
  Range visible() const { return visible_; }  // from the first to the last key without padding

  bool pads_any(Range keys) const {
    VecInt any = splat_int(0);
    for (int64_t j = keys.begin; j < keys.end; j += kLanes) any |= load_int(padding_ + j);
    int32_t found = 0;
    for (int lane = 0; lane < kLanes; ++lane) found |= any[lane];
    return found != 0;
  }
  const Sizes& sizes() const { return sizes_; }
  int64_t depth() const { return depth_; }

 private:
  static Right rows(const float* panels, int64_t count, int64_t first) {
    return {panels, words_of<Words>(count), first / Words::kElements};
  }

  void pack_keys(int64_t b, int64_t n) {
    pack_source(keys_.k_memory, keys_.k, b, n, k_columns_, k_rows_);
    pack_source(keys_.v_memory, keys_.v, b, n, v_columns_, v_rows_);
  }

  void pack_source(const View& memory, const View& current, int64_t b, int64_t n, float* columns,
                   float* rows) {
    for (int64_t j = 0; j < sizes_.keys; j += kLanes) {
      const Element<Words>* block[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        const int64_t key = j + i;
        if (key >= sizes_.keys) {
          block[i] = zeros_;
          continue;
        }
        const char* data = key < keys_.apart ? at(memory, keys_.dtype, b, key, n)
                                             : at(current, keys_.dtype, b, key - keys_.apart, n);
        const bool hidden =
            keys_.key_padding != nullptr && keys_.key_padding[b * sizes_.keys + key];
        block[i] = elements_of(data, hidden, i);
      }
      put_block(block, j, sizes_.keys, columns, rows);
    }
  }

  void pack_table(int64_t group, int64_t n) {
    for (int64_t p = 0; p < sizes_.table; p += kLanes) {
      const Element<Words>* block[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        // A causal table may be shorter, or one may start later: no row sees such a key.
        const int64_t row = p + i - keys_.table_start;
        const bool exists = p + i < sizes_.table && 0 <= row && row < keys_.table;
        block[i] = exists ? elements_of(at(keys_.r, keys_.dtype, group, row, n), false, i) : zeros_;
      }
      put_block(block, p, sizes_.table, r_columns_, r_rows_);
    }
  }

  // A row as elements: where it lies, if it lies there as such, or else a copy, the i-th of a
  // block.
  const Element<Words>* elements_of(const char* data, bool hidden, int64_t i) {
    const Dtype own = Words::kElements == 1 ? Dtype::kFloat32 : Dtype::kBFloat16;
    if (keys_.dtype == own && !hidden && sizes_.dim % Words::kElements == 0) {
      return reinterpret_cast<const Element<Words>*>(data);
    }
    Element<Words>* copy = block_ + i * depth_ * Words::kElements;
    read_row<Words>(data, keys_.dtype, sizes_.dim, hidden, scratch_, copy);
    return copy;
  }

  // Rows j .. j + kLanes of `count` into panels for either direction; null: not wanted.
  void put_block(const Element<Words>* const (&block)[kLanes], int64_t j, int64_t count,
                 float* columns, float* rows) const {
    if (columns != nullptr) {
      const float* words[kLanes];
      for (int i = 0; i < kLanes; ++i) words[i] = reinterpret_cast<const float*>(block[i]);
      put_columns(words, depth_, j, count, columns);
    }
    if (rows == nullptr) return;
    const int64_t end = min_of(kLanes, count - j);
    for (int64_t i = 0; i < end; i += Words::kElements) {
      put_word_row(block[i], block[i + Words::kElements - 1], (j + i) / Words::kElements,
                   words_of<Words>(count), sizes_.dim, rows);
    }
  }

  void read_codes(int64_t b) {
    visible_ = {sizes_.keys, 0};
    for (int64_t j = 0; j < sizes_.padded_keys; ++j) {
      const int64_t at = b * sizes_.keys + j;
      const bool inside = j < sizes_.keys;
      const bool hidden = inside && keys_.key_padding != nullptr && keys_.key_padding[at];
      padding_[j] = hidden ? -1 : 0;
      ranks_[j] = inside && keys_.rank_k != nullptr ? keys_.rank_k[at] : 0;
      segments_[j] = inside && keys_.segments != nullptr ? keys_.segments[at] : 0;
      if (inside && !hidden) visible_ = {min_of(visible_.begin, j), j + 1};
    }
  }

  const AttentionKeys& keys_;
  const Sizes sizes_;
  const bool backward_;
  const int64_t depth_;  // words of a row of D elements
  int64_t group_ = -1, b_ = -1, n_ = -1;
  Range visible_{0, 0};
  float *k_columns_ = nullptr, *v_rows_ = nullptr, *r_columns_ = nullptr;
  float *k_rows_ = nullptr, *v_columns_ = nullptr, *r_rows_ = nullptr;
  Element<Words>*block_, *zeros_;
  float* scratch_;
  int32_t *padding_, *ranks_, *segments_;
};

}  // namespace
}  // namespace xlnet_fast::cpu::XLNET_FAST_ISA
