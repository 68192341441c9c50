// A row of a tensor of any dtype, read and written as vectors of fp32, with the parts of vectors at
// its ends. The scalar conversions are in pack.h.
#pragma once

#include "pack.h"

namespace xlnet_fast::cpu::XLNET_FAST_ISA {
namespace {

typedef uint16_t HalfVec __attribute__((vector_size(2 * XLNET_FAST_LANES)));
typedef uint8_t ByteVec __attribute__((vector_size(XLNET_FAST_LANES)));

struct Float32Row {
  using Element = float;
  using Raw = Vec;
  static constexpr Dtype kDtype = Dtype::kFloat32;
  static XLNET_FAST_INLINE Vec widen(Raw x) { return x; }
  static XLNET_FAST_INLINE Raw narrow(Vec x) { return x; }
};

struct BFloat16Row {
  using Element = uint16_t;
  using Raw = HalfVec;
  static constexpr Dtype kDtype = Dtype::kBFloat16;
  static XLNET_FAST_INLINE Vec widen(Raw x) {
    return (Vec)(__builtin_convertvector(x, VecInt) << 16);
  }
  static XLNET_FAST_INLINE Raw narrow(Vec x) {  // to nearest, ties to even; NaN stays NaN
#if defined(XLNET_FAST_BF16)
    return (Raw)_mm512_cvtneps_pbh((__m512)x);
#else
    const VecInt bits = (VecInt)x;
    const VecInt rounded = (bits + splat_int(0x7FFF) + ((bits >> 16) & splat_int(1))) >> 16;
    const VecInt nan = (bits >> 16) | splat_int(0x40);
    return __builtin_convertvector(x == x ? rounded : nan, HalfVec);
#endif
  }
};

struct Float16Row {
  using Element = uint16_t;
  using Raw = HalfVec;
  static constexpr Dtype kDtype = Dtype::kFloat16;
#if XLNET_FAST_LANES == 16
  static XLNET_FAST_INLINE Vec widen(Raw x) { return (Vec)_mm512_cvtph_ps((__m256i)x); }
  static XLNET_FAST_INLINE Raw narrow(Vec x) {
    return (Raw)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
#elif XLNET_FAST_LANES == 8
  static XLNET_FAST_INLINE Vec widen(Raw x) { return (Vec)_mm256_cvtph_ps((__m128i)x); }
  static XLNET_FAST_INLINE Raw narrow(Vec x) {
    return (Raw)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT);
  }
#else  // as from_float16 and to_float16 of pack.h, in whole vectors
  static XLNET_FAST_INLINE Vec widen(Raw x) {
    const VecInt bits = __builtin_convertvector(x, VecInt);
    const VecInt sign = (bits & splat_int(0x8000)) << 16;
    const VecInt rest = (bits & splat_int(0x7FFF)) << 13;
    const VecInt scaled = (VecInt)((Vec)rest * splat(0x1p112f));
    const VecInt infinite = (rest >= splat_int(0x0F800000)) & splat_int(0x7F800000);
    return (Vec)(sign | scaled | infinite);
  }
  static XLNET_FAST_INLINE Raw narrow(Vec x) {
    const VecInt sign = ((VecInt)x >> 16) & splat_int(0x8000);
    const VecInt bits = (VecInt)x & splat_int(0x7FFFFFFF);
    const VecInt odd = (bits >> 13) & splat_int(1);
    const VecInt normal = (bits - splat_int(0x38000000 - 0xFFF) + odd) >> 13;
    const VecInt denormal = (VecInt)((Vec)bits + splat(0.5f)) - splat_int(0x3F000000);
    VecInt half = bits < splat_int(0x38800000) ? denormal : normal;
    half = bits >= splat_int(0x477FF000) ? splat_int(0x7C00) : half;
    half = bits > splat_int(0x7F800000) ? splat_int(0x7E00) : half;
    return __builtin_convertvector(sign | half, HalfVec);
  }
#endif
};

// One row of a tensor: key j is element `shift + j` where `inside` holds j; there is no other.
template <class Type>
struct Row {
  char* data = nullptr;
  int64_t shift = 0;
  Range inside{0, 0};

  // Keys from .. from + kLanes - 1, zero where there is none.
  XLNET_FAST_INLINE Vec load(int64_t from) const {
    typename Type::Raw raw;
    if (holds_all(from)) {
      __builtin_memcpy(&raw, address(from), sizeof raw);
      return Type::widen(raw);
    }
    return Type::widen(load_some(from));
  }

  // Writes those of keys from .. from + kLanes - 1 that there are.
  XLNET_FAST_INLINE void store(int64_t from, Vec x) const {
    const typename Type::Raw raw = Type::narrow(x);
    if (holds_all(from)) {
      __builtin_memcpy(address(from), &raw, sizeof raw);
    } else {
      store_some(from, raw);
    }
  }

 private:
  bool holds_all(int64_t from) const { return inside.begin <= from && from + kLanes <= inside.end; }
  bool holds(int64_t j) const { return inside.begin <= j && j < inside.end; }

  char* address(int64_t j) const {
    return data + (shift + j) * static_cast<int64_t>(sizeof(typename Type::Element));
  }

  typename Type::Raw load_some(int64_t from) const {
    typename Type::Element elements[kLanes] = {};
    for (int lane = 0; lane < kLanes; ++lane) {
      if (holds(from + lane))
        __builtin_memcpy(elements + lane, address(from + lane), sizeof *elements);
    }
    typename Type::Raw raw;
    __builtin_memcpy(&raw, elements, sizeof raw);
    return raw;
  }

  void store_some(int64_t from, typename Type::Raw raw) const {
    for (int lane = 0; lane < kLanes; ++lane) {
      const typename Type::Element element = raw[lane];
      if (holds(from + lane)) __builtin_memcpy(address(from + lane), &element, sizeof element);
    }
  }
};

}  // namespace
}  // namespace xlnet_fast::cpu::XLNET_FAST_ISA
