// From tensors of any dtype to what gemm.h multiplies: rows of elements, and panels of words.
#pragma once

#include "gemm.h"

namespace xlnet_fast::cpu::XLNET_FAST_ISA {
namespace {

XLNET_FAST_INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}

XLNET_FAST_INLINE float float_of(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

XLNET_FAST_INLINE float from_bfloat16(uint16_t x) { return float_of(uint32_t{x} << 16); }

XLNET_FAST_INLINE uint16_t to_bfloat16(float x) {  // to nearest, ties to even; NaN stays NaN
  const uint32_t bits = bits_of(x);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? nan : rounded);
}

XLNET_FAST_INLINE float from_float16(uint16_t x) {
  const uint32_t sign = uint32_t{x & 0x8000u} << 16;
  const uint32_t rest = uint32_t{x & 0x7FFFu} << 13;
  // Times 2^112 moves the exponent's bias from 15 to 127 and makes denormals normal.
  const float scaled = float_of(rest) * 0x1p112f;
  const uint32_t infinite = rest >= 0x0F800000u ? 0x7F800000u : 0u;  // infinity and NaN
  return float_of(sign | bits_of(scaled) | infinite);
}

XLNET_FAST_INLINE uint16_t to_float16(float x) {  // to nearest, ties to even
  const uint32_t sign = (bits_of(x) >> 16) & 0x8000u;
  const uint32_t bits = bits_of(x) & 0x7FFFFFFFu;
  const uint32_t normal = (bits + 0xFFFu + ((bits >> 13) & 1u) - 0x38000000u) >> 13;
  // Adding 1/2 puts a denormal half's unit in the last place.
  const uint32_t denormal = bits_of(float_of(bits) + 0.5f) - 0x3F000000u;
  uint32_t half = bits < 0x38800000u ? denormal : normal;
  half = bits >= 0x477FF000u ? 0x7C00u : half;  // rounds to infinity
  half = bits > 0x7F800000u ? 0x7E00u : half;
  return static_cast<uint16_t>(sign | half);
}

constexpr int64_t size_of(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

inline void read_floats(const char* data, Dtype dtype, int64_t count, float* out) {
  const auto* halves = reinterpret_cast<const uint16_t*>(data);
  if (dtype == Dtype::kFloat32) {
    __builtin_memcpy(out, data, static_cast<size_t>(count) * 4);
  } else if (dtype == Dtype::kBFloat16) {
    for (int64_t i = 0; i < count; ++i) out[i] = from_bfloat16(halves[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = from_float16(halves[i]);
  }
}

inline void write_floats(const float* x, int64_t count, Dtype dtype, char* data) {
  auto* halves = reinterpret_cast<uint16_t*>(data);
  if (dtype == Dtype::kFloat32) {
    __builtin_memcpy(data, x, static_cast<size_t>(count) * 4);
  } else if (dtype == Dtype::kBFloat16) {
    for (int64_t i = 0; i < count; ++i) halves[i] = to_bfloat16(x[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) halves[i] = to_float16(x[i]);
  }
}

// An element of a row of words: a float, or one bfloat16 of a pair.
template <class Words>
struct ElementOf;
template <>
struct ElementOf<FloatWords> {
  using Type = float;
  static XLNET_FAST_INLINE float from_float(float x) { return x; }
  static XLNET_FAST_INLINE float to_float(float x) { return x; }
};
#if defined(XLNET_FAST_BF16)
template <>
struct ElementOf<BFloat16Pairs> {
  using Type = uint16_t;
  static XLNET_FAST_INLINE uint16_t from_float(float x) { return to_bfloat16(x); }
  static XLNET_FAST_INLINE float to_float(uint16_t x) { return from_bfloat16(x); }
};
#endif
#if defined(XLNET_FAST_AMX)
template <>
struct ElementOf<BFloat16Tiles> : ElementOf<BFloat16Pairs> {};
#endif
template <class Words>
using Element = typename ElementOf<Words>::Type;

template <class Words>
constexpr int64_t words_of(int64_t elements) {
  return (elements + Words::kElements - 1) / Words::kElements;
}

XLNET_FAST_INLINE void store_elements(float* p, Vec v) { store(p, v); }
#if defined(XLNET_FAST_BF16)
XLNET_FAST_INLINE void store_elements(uint16_t* p, Vec v) { store_bfloat16(p, v); }
#endif

// `count` elements from fp32, and zeros up to a whole word.
template <class Words>
void write_elements(const float* x, int64_t count, Element<Words>* out) {
  int64_t done = 0;
  for (; done + kLanes <= count; done += kLanes) store_elements(out + done, load(x + done));
  for (int64_t i = done; i < count; ++i) out[i] = ElementOf<Words>::from_float(x[i]);
  for (int64_t i = count; i < words_of<Words>(count) * Words::kElements; ++i) out[i] = 0;
}

// One row of a tensor as elements, with zeros up to a whole word. With `finite`, infinities and NaN
// become zero: a hidden key's probability is zero, but zero times NaN is NaN.
template <class Words>
void read_row(const char* data, Dtype dtype, int64_t count, bool finite, float* scratch,
              Element<Words>* out) {
  read_floats(data, dtype, count, scratch);
  if (finite) {
    for (int64_t i = 0; i < count; ++i) {
      const bool is_finite = (bits_of(scratch[i]) & 0x7F800000u) != 0x7F800000u;
      scratch[i] = is_finite ? scratch[i] : 0.0f;
    }
  }
  write_elements<Words>(scratch, count, out);
}

// Columns j .. j + kLanes of the panels become the words of these rows: B = X^T, for products over
// d. Columns from `columns` on take the last row's place and are nobody's: j is a multiple of
// kLanes.
XLNET_FAST_INLINE void put_columns(const float* const (&rows)[kLanes], int64_t depth, int64_t j,
                                   int64_t columns, float* panels) {
  const int64_t first = j / kPanel * kPanel;
  const int64_t width = vectors_at(first, columns) * kLanes;
  float* at = panels + first * depth + (j - first);
  int64_t k = 0;
  for (; k + kLanes <= depth; k += kLanes) {
    Vec block[kLanes];
    for (int i = 0; i < kLanes; ++i) block[i] = load(rows[i] + k);
    transpose(block);
    for (int i = 0; i < kLanes; ++i) store(at + (k + i) * width, block[i]);
  }
  for (; k < depth; ++k) {
    for (int i = 0; i < kLanes; ++i) at[k * width + i] = word_at(rows[i] + k);
  }
}

// Whole vectors of words, from elements of one row or of two side by side.
template <int kVectors>
XLNET_FAST_INLINE void load_words(Vec (&words)[kVectors], const float* row, const float*) {
  XLNET_FAST_UNROLL(4)
  for (int v = 0; v < kVectors; ++v) words[v] = load(row + v * kLanes);
}
#if defined(XLNET_FAST_BF16)
template <int kVectors>
XLNET_FAST_INLINE void load_words(Vec (&words)[kVectors], const uint16_t* even,
                                  const uint16_t* odd) {
  XLNET_FAST_UNROLL(2)
  for (int v = 0; v + 1 < kVectors; v += 2) {
    interleave(even + v * kLanes, odd + v * kLanes, words[v], words[v + 1]);
  }
  constexpr int kLast = kVectors - 1;
  if (kVectors % 2 == 1) words[kLast] = interleaved(even + kLast * kLanes, odd + kLast * kLanes);
}
#endif

// One word row of a panel that is `width` columns wide, from `count` elements and zeros.
XLNET_FAST_INLINE void put_panel_row(const float* row, const float*, int64_t count, int64_t width,
                                     float* at) {
  int64_t d = 0;
  for (; d + kLanes <= count; d += kLanes) store(at + d, load(row + d));
  for (; d < width; ++d) at[d] = d < count ? row[d] : 0.0f;
}

// The same from two rows of elements, side by side in each word.
XLNET_FAST_INLINE void put_panel_row(const uint16_t* even, const uint16_t* odd, int64_t count,
                                     int64_t width, float* at) {
  auto* words = reinterpret_cast<uint32_t*>(at);
  int64_t d = 0;
#if defined(XLNET_FAST_BF16)
  for (; d + 2 * kLanes <= count; d += 2 * kLanes) {
    Vec pair[2];
    load_words(pair, even + d, odd + d);
    store(at + d, pair[0]);
    store(at + d + kLanes, pair[1]);
  }
#endif
  for (; d < count; ++d) words[d] = uint32_t{even[d]} | uint32_t{odd[d]} << 16;
  for (; d < width; ++d) words[d] = 0;
}

// Word row k of the panels from elements of one row, or of two side by side: B = X, for products
// over the rows of X. `columns` elements a row.
template <class Element>
XLNET_FAST_INLINE void put_word_row(const Element* even, const Element* odd, int64_t k,
                                    int64_t depth, int64_t columns, float* panels) {
  for (int64_t column = 0; column < columns; column += kPanel) {
    const int64_t width = vectors_at(column, columns) * kLanes;
    put_panel_row(even + column, odd + column, min_of(width, columns - column), width,
                  panels + column * depth + k * width);
  }
}

// All word rows of the panels of X[rows, columns], its rows `stride` elements apart.
template <class Words>
void put_rows(const Element<Words>* x, int64_t rows, int64_t stride, int64_t columns,
              const Element<Words>* zeros, float* panels) {
  const int64_t depth = words_of<Words>(rows);
  for (int64_t k = 0; k < depth; ++k) {
    const int64_t i = k * Words::kElements;
    const bool has_next = i + Words::kElements <= rows;
    put_word_row(x + i * stride, has_next ? x + (i + Words::kElements - 1) * stride : zeros, k,
                 depth, columns, panels);
  }
}

}  // namespace
}  // namespace xlnet_fast::cpu::XLNET_FAST_ISA
