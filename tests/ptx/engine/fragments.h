// Matrices in the registers of a warp, as products have them.
//
// With g = lane / 4 and t = lane % 4, and words of two halves or one tf32: word (row, column) of A
// is in the lane with g = row % 8 and t = column % 4, in register row / 8 + 2 (column / 4); B the
// same by its column and its word of k. Rows of D are g and g + 8, its columns 2 t and 2 t + 1.
#pragma once

#include "machine.h"
#include "numbers.h"

namespace xlnet_fast::ptx {

constexpr int kRows = 16, kColumns = 8;  // of D

// tf32 is a float of which the low 13 bits do not count.
struct Tf32 {
  uint32_t bits;
};

inline float widen(Tf32 x) { return std::bit_cast<float>(x.bits & 0xffffe000u); }
inline float widen(Half x) { return to_float(x); }
inline float widen(Bfloat x) { return to_float(x); }

typedef float Columns __attribute__((vector_size(kColumns * sizeof(float))));

// The 32 words of one register as floats: those of lane l at l times its elements.
template <class T>
void widen_register(const Step& step, uint32_t at, float* to) {
  const T* const from = step.warp.lanes<T>(at);
  constexpr int kElements = kLanes * 4 / sizeof(T);
  for (int i = 0; i < kElements; ++i) to[i] = widen(from[i]);
}

template <class Sum>
void read_sums(const Step& step, const uint32_t* at, float* sums) {
  for (int half = 0; half < 2; ++half) {
    if constexpr (sizeof(Sum) == 4) {
      const float* const even = step.warp.lanes<float>(at[2 * half]);
      const float* const odd = step.warp.lanes<float>(at[2 * half + 1]);
      float* const to = sums + 8 * half * kColumns;
      for (int lane = 0; lane < kLanes; ++lane) {
        to[2 * lane] = even[lane];
        to[2 * lane + 1] = odd[lane];
      }
    } else {
      const Half* const pairs = step.warp.lanes<Half>(at[half]);
      float* const to = sums + 8 * half * kColumns;
      for (int i = 0; i < 2 * kLanes; ++i) to[i] = to_float(pairs[i]);
    }
  }
}

template <class Sum>
void write_sums(const Step& step, const uint32_t* at, const float* sums) {
  for (int half = 0; half < 2; ++half) {
    const float* const from = sums + 8 * half * kColumns;
    if constexpr (sizeof(Sum) == 4) {
      float* const even = step.warp.lanes<float>(at[2 * half]);
      float* const odd = step.warp.lanes<float>(at[2 * half + 1]);
      for (int lane = 0; lane < kLanes; ++lane) {
        even[lane] = from[2 * lane];
        odd[lane] = from[2 * lane + 1];
      }
    } else {
      Half* const pairs = step.warp.lanes<Half>(at[half]);
      for (int i = 0; i < 2 * kLanes; ++i) pairs[i] = to_half(from[i]);
    }
  }
}

}  // namespace xlnet_fast::ptx
