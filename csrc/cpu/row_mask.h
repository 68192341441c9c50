// Which keys one query row must not see: every part of a mask, a vector of keys at a time.
//
// The arrays over the keys are read in whole vectors: they reach to the end of the last one.
#pragma once

#include "gemm.h"

namespace xlnet_fast::cpu::XLNET_FAST_ISA {
namespace {

constexpr float kHiddenScore = -1e30f;  // HF's: a row whose keys are all hidden is uniform
constexpr float kSeesNone = -1e29f;     // below any score of a key that is seen

struct RowMask {
  const int32_t* padding = nullptr;  // [j] or null; all ones hides the key, zero does not
  const int32_t* ranks = nullptr;    // [j] or null: a key whose rank is not below the row's hides
  const uint8_t* bits = nullptr;     // [ceil(J / 8)] or null; bit j hides key j
  int32_t rank = 0;                  // of the row
  int64_t keys = 0, memory = 0;      // J, M
  int64_t position = 0;              // of the row; negative: absent
  bool causal = false, same_length = false, see_self = false;
  bool has_window = false;
  Range window{0, 0};  // keys that the window lets the row see

  bool hides_nothing() const {
    return padding == nullptr && ranks == nullptr && bits == nullptr && !causal && !has_window;
  }
};

// Of AttentionStream and MaskedSoftmaxParams.
template <class Params>
bool has_window(const Params& p) {
  return p.window_left >= 0 || p.window_right >= 0;
}

// The keys that the window lets a row at `position` see.
template <class Params>
Range window_of(const Params& p, int64_t position, int64_t memory, int64_t keys) {
  const int64_t below = position < 0 ? position - p.chunk + 1 : position;  // to round downwards
  const int64_t start = memory + below / p.chunk * p.chunk;
  Range seen{0, keys};
  if (p.window_left >= 0) seen.begin = min_of(keys, max_of(0, start - p.window_left));
  if (p.window_right >= 0) seen.end = max_of(0, min_of(keys, start + p.chunk + p.window_right));
  return seen;
}

// All ones where a bit of keys key .. key + kLanes - 1 is set; key is a multiple of kLanes.
XLNET_FAST_INLINE VecInt hidden_by_bits(const uint8_t* bits, int64_t key, int64_t keys) {
  uint32_t word = bits[key / 8];
  if (kLanes > 8 && key + 8 < keys) word |= uint32_t{bits[key / 8 + 1]} << 8;
  const VecInt lanes = splat_int(static_cast<int32_t>(word >> (key % 8))) >> lane_numbers();
  return -(lanes & splat_int(1));
}

// Fills hidden[j - columns.begin] with all ones where the row must not see key j, zero elsewhere,
// to the end of the last vector; columns.begin is a multiple of kLanes. False: it sees every key,
// and nothing is filled.
XLNET_FAST_INLINE bool fill_hidden(const RowMask& mask_reference, Range columns, int32_t* hidden) {
  const RowMask mask = mask_reference;  // a local copy: no store through `hidden` can change it
  if (mask.hides_nothing()) return false;
  const int64_t self = mask.memory + mask.position;
  const VecInt rank = splat_int(mask.rank), last = splat_int(static_cast<int32_t>(self)),
               first = splat_int(static_cast<int32_t>(mask.position)),
               begin = splat_int(static_cast<int32_t>(mask.window.begin)),
               end = splat_int(static_cast<int32_t>(mask.window.end));
  for (int64_t key = columns.begin; key < columns.end; key += kLanes) {
    VecInt hides = splat_int(0);
    if (mask.padding != nullptr) hides |= load_int(mask.padding + key);
    if (mask.ranks != nullptr) hides |= rank <= load_int(mask.ranks + key);
    if (mask.bits != nullptr) hides |= hidden_by_bits(mask.bits, key, mask.keys);
    const VecInt number = lane_numbers() + splat_int(static_cast<int32_t>(key));
    if (mask.has_window) hides |= (number < begin) | (number >= end);
    if (mask.causal) {
      hides |= number > last;
      if (mask.same_length) hides |= number < first;
    }
    store_int(hidden + (key - columns.begin), hides);
  }
  if (mask.see_self && columns.begin <= self && self < columns.end) {
    hidden[self - columns.begin] = 0;
  }
  return true;
}

}  // namespace
}  // namespace xlnet_fast::cpu::XLNET_FAST_ISA
