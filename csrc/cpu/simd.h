// Vectors of fp32 lanes for the instruction set a file is compiled for. Everything here lives
// in that set's own namespace, so no two files share an inline function compiled differently.
#pragma once

namespace xlnet_fast::cpu::XLNET_FAST_ISA {
namespace {

constexpr int kLanes = XLNET_FAST_LANES;

typedef float Vec __attribute__((vector_size(4 * XLNET_FAST_LANES)));
typedef int32_t VecInt __attribute__((vector_size(4 * XLNET_FAST_LANES)));

XLNET_FAST_INLINE Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

XLNET_FAST_INLINE VecInt load_int(const int32_t* p) {
  VecInt v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

XLNET_FAST_INLINE void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }
XLNET_FAST_INLINE void store_int(int32_t* p, VecInt v) { __builtin_memcpy(p, &v, sizeof v); }

#if XLNET_FAST_LANES == 16
XLNET_FAST_INLINE Vec splat(float x) { return (Vec)_mm512_set1_ps(x); }
XLNET_FAST_INLINE VecInt splat_int(int32_t x) { return (VecInt)_mm512_set1_epi32(x); }
XLNET_FAST_INLINE Vec multiply_add(Vec a, Vec b, Vec c) {
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
XLNET_FAST_INLINE Vec maximum(Vec a, Vec b) { return (Vec)_mm512_max_ps((__m512)a, (__m512)b); }
#elif XLNET_FAST_LANES == 8
XLNET_FAST_INLINE Vec splat(float x) { return (Vec)_mm256_set1_ps(x); }
XLNET_FAST_INLINE VecInt splat_int(int32_t x) { return (VecInt)_mm256_set1_epi32(x); }
XLNET_FAST_INLINE Vec multiply_add(Vec a, Vec b, Vec c) {
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
XLNET_FAST_INLINE Vec maximum(Vec a, Vec b) { return (Vec)_mm256_max_ps((__m256)a, (__m256)b); }
#else  // any target of gcc and clang
XLNET_FAST_INLINE Vec splat(float x) { return Vec{x, x, x, x}; }
XLNET_FAST_INLINE VecInt splat_int(int32_t x) { return VecInt{x, x, x, x}; }
XLNET_FAST_INLINE Vec multiply_add(Vec a, Vec b, Vec c) { return a * b + c; }
XLNET_FAST_INLINE Vec maximum(Vec a, Vec b) { return a > b ? a : b; }
#endif

// `yes` in the lanes where the mask is all ones, `no` where it is zero.
XLNET_FAST_INLINE Vec select(VecInt mask, Vec yes, Vec no) { return mask ? yes : no; }

XLNET_FAST_INLINE VecInt lane_numbers() {
  alignas(64) static const int32_t kNumbers[16] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                   8, 9, 10, 11, 12, 13, 14, 15};
  return load_int(kNumbers);
}

XLNET_FAST_INLINE float sum_of(Vec v) {
  float total = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) total += v[lane];
  return total;
}

// Stops the compiler from reading memory again where a vector is used more than once.
XLNET_FAST_INLINE void keep_in_register(Vec& v) {
#if defined(__x86_64__)
  __asm__("" : "+v"(v));
#else
  (void)v;
#endif
}

XLNET_FAST_INLINE float max_of(Vec v) {
  float most = v[0];
  for (int lane = 1; lane < kLanes; ++lane) most = v[lane] > most ? v[lane] : most;
  return most;
}

// A long sum of vectors as a sum of short ones, which rounds less.
class BlockSum {
 public:
  // Written out: gcc compiles an implicit constructor for the file's own target, not this one.
  XLNET_FAST_INLINE BlockSum() {
    part_ = splat(0.0f);
    total_ = splat(0.0f);
  }
  XLNET_FAST_INLINE void add(Vec v) {
    part_ += v;
    if (++count_ % kBlock == 0) {
      total_ += part_;
      part_ = splat(0.0f);
    }
  }
  XLNET_FAST_INLINE float value() const { return sum_of(total_ + part_); }

 private:
  static constexpr int64_t kBlock = 32;
  Vec part_, total_;
  int64_t count_ = 0;
};

// e^f for |f| <= ln 2 / 2, by polynomials of least relative error: 2e-9 with six coefficients, 3e-6
// with four, which is ample for what is rounded to bfloat16.
template <bool kFast>
XLNET_FAST_INLINE Vec exp_of_fraction(Vec f) {
  Vec p;
  if (kFast) {
    p = multiply_add(splat(0.041513681f), f, splat(0.16787592f));
    p = multiply_add(p, f, splat(0.50003022f));
    p = multiply_add(p, f, splat(0.99996680f));
  } else {
    p = multiply_add(splat(0.0013843607f), f, splat(0.0083741955f));
    p = multiply_add(p, f, splat(0.041668005f));
    p = multiply_add(p, f, splat(0.16666430f));
    p = multiply_add(p, f, splat(0.49999994f));
    p = multiply_add(p, f, splat(1.0f));
  }
  return multiply_add(p, f, splat(1.0f));
}

// e^x for x <= 16, to about one unit in the last place, or to 3e-6; 0 where it is below 2^-126,
// where denormals would begin. e^x = 2^n e^f; ln 2 is split in two, so that n ln 2 is exact to the
// last place of x.
template <bool kFast = false>
XLNET_FAST_INLINE Vec exp_of(Vec x) {
  const Vec least = splat(-87.336544f);       // ln 2^-126
  const Vec to_integer = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
#if XLNET_FAST_LANES == 16
  const Vec bounded = x;  // lanes below are zeroed at the end, whatever became of them
#else
  const Vec bounded = maximum(x, least);
#endif
  const Vec shifted = multiply_add(bounded, splat(1.44269504f), to_integer);
  const Vec n = shifted - to_integer;
  Vec f = multiply_add(n, splat(-0.693359375f), bounded);
  f = multiply_add(n, splat(2.12194440e-4f), f);
  const Vec p = exp_of_fraction<kFast>(f);
#if XLNET_FAST_LANES == 16
  const __mmask16 normal =
      _mm512_cmp_ps_mask((__m512)x, (__m512)least, _CMP_NLT_UQ);  // NaN stays NaN
  return (Vec)_mm512_maskz_scalef_ps(normal, (__m512)p, (__m512)n);
#else
  const VecInt exponent = ((VecInt)shifted - (VecInt)to_integer) << 23;
  const Vec value = select(x < least, splat(0.0f), (Vec)((VecInt)p + exponent));
  return select(x == x, value, x);  // NaN stays NaN
#endif
}

// x scale - most, where most is the largest x scale of a row, rounded. One fused multiply-add:
// those near the maximum, which count, are rounded at their own size. From a maximum of 2^28 on,
// what it lost by rounding would come back as more than e^x can take, or all of a row as less:
// there the product is rounded first, as the maximum was.
class BelowHighest {
 public:
  XLNET_FAST_INLINE BelowHighest(float scale, float most) {
    const bool fused = -0x1p28f < most && most < 0x1p28f;
    scale_ = splat(scale);
    first_ = splat(fused ? -most : -0.0f);
    then_ = splat(fused ? 0.0f : -most);
  }
  XLNET_FAST_INLINE Vec of(Vec x) const { return multiply_add(x, scale_, first_) + then_; }

 private:
  Vec scale_, first_, then_;
};

#if defined(XLNET_FAST_BF16)
// kLanes floats as bfloat16, to nearest, ties to even.
XLNET_FAST_INLINE void store_bfloat16(uint16_t* p, Vec v) {
  const __m256bh rounded = _mm512_cvtneps_pbh((__m512)v);
  __builtin_memcpy(p, &rounded, sizeof rounded);
}
#endif

#if defined(XLNET_FAST_BF16)
// Words of one half of `even` and one of `odd` each: kLanes of them, or 2 kLanes.
XLNET_FAST_INLINE Vec interleaved(const uint16_t* even, const uint16_t* odd) {
  const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)even));
  const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)odd));
  return (Vec)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}
XLNET_FAST_INLINE void interleave(const uint16_t* even, const uint16_t* odd, Vec& first,
                                  Vec& second) {
  alignas(64) static const uint16_t kPlaces[2][32] = {
      {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
       8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47},
      {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
       24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63}};
  const __m512i a = _mm512_loadu_si512(even), b = _mm512_loadu_si512(odd);
  first = (Vec)_mm512_permutex2var_epi16(a, _mm512_load_si512(kPlaces[0]), b);
  second = (Vec)_mm512_permutex2var_epi16(a, _mm512_load_si512(kPlaces[1]), b);
}
#endif

// Of every pair of blocks of `step` lanes, a gets the first one of a and of b, and b the second one
// of both. `step` is a constant once the loop around it is unrolled.
XLNET_FAST_INLINE void exchange(Vec& a, Vec& b, int step) {
  const Vec x = a, y = b;
#if defined(__clang__)  // it has no shuffle by a vector, and finds the shuffle in this
  for (int lane = 0; lane < kLanes; ++lane) {
    const bool upper = (lane & step) != 0;
    a[lane] = upper ? y[lane - step] : x[lane];
    b[lane] = upper ? y[lane] : x[lane + step];
  }
#else
  VecInt first, second;
  for (int lane = 0; lane < kLanes; ++lane) {
    const bool upper = (lane & step) != 0;
    first[lane] = upper ? kLanes + lane - step : lane;
    second[lane] = upper ? kLanes + lane : lane + step;
  }
  a = __builtin_shuffle(x, y, first);
  b = __builtin_shuffle(x, y, second);
#endif
}

// Transposes a square block, one vector a row.
XLNET_FAST_INLINE void transpose(Vec (&rows)[kLanes]) {
  XLNET_FAST_UNROLL(4)
  for (int step = 1; step < kLanes; step *= 2) {
    XLNET_FAST_UNROLL(16)
    for (int i = 0; i < kLanes; ++i) {
      if ((i & step) == 0) exchange(rows[i], rows[i + step], step);
    }
  }
}

// Lane i becomes the sum of the lanes of rows[i], of which there are kCount; a vector's sum has the
// same bits in every place.
template <int kCount, int kStep = 1>
XLNET_FAST_INLINE Vec sums_of(Vec (&rows)[kLanes]) {
  XLNET_FAST_UNROLL(8)
  for (int i = 0; i < kCount; i += 2 * kStep) {
    Vec other = i + kStep < kCount ? rows[i + kStep] : rows[i];
    exchange(rows[i], other, kStep);
    rows[i] += other;
  }
  if constexpr (2 * kStep < kLanes) return sums_of<kCount, 2 * kStep>(rows);
  return rows[0];
}

}  // namespace
}  // namespace xlnet_fast::cpu::XLNET_FAST_ISA
