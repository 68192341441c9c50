// Numbers as PTX has them: halves, flushed denormals, directed roundings.
#pragma once

#include <bit>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <limits>

#include "lanes.h"

namespace xlnet_fast::ptx {

constexpr uint32_t kNan32 = 0x7fffffffu;  // the one that instructions make
constexpr uint16_t kNan16 = 0x7fffu;

inline float to_float(float x) { return x; }
inline double to_float(double x) { return x; }

inline float to_float(Bfloat x) { return std::bit_cast<float>(uint32_t{x.bits} << 16); }

// By arithmetic alone, so that loops over it become vectors.
inline float to_float(Half x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16;
  const uint32_t rest = x.bits & 0x7fffu;
  // Exponent and mantissa moved to their places; 2^112 mends the exponent, of denormals too.
  const float scaled = std::bit_cast<float>(rest << 13) * 0x1p112f;
  const uint32_t finite = std::bit_cast<uint32_t>(scaled);
  const uint32_t special = (rest << 13) | 0x7f800000u;
  return std::bit_cast<float>((rest >= 0x7c00u ? special : finite) | sign);
}

inline Bfloat to_bfloat(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<uint16_t>(is_nan ? kNan16 : rounded)};
}

inline Half to_half(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t rest = bits & 0x7fffffffu;
  // Normal: the exponent moved, rounded to even. Denormal: an addition rounds at the right bit.
  const uint32_t normal = (rest - 0x38000000u + 0xfffu + (rest >> 13 & 1)) >> 13;
  const float shifted = std::bit_cast<float>(rest) + 0.5f;
  const uint32_t denormal = std::bit_cast<uint32_t>(shifted) - 0x3f000000u;
  uint32_t found = rest < 0x38800000u ? denormal : normal;
  found = rest >= 0x477ff000u ? 0x7c00u : found;
  found = rest > 0x7f800000u ? kNan16 : found | sign;
  return {static_cast<uint16_t>(found)};
}

template <class T>
struct Narrow;
template <>
struct Narrow<float> {
  static float from(float x) { return x; }
};
template <>
struct Narrow<double> {
  static double from(double x) { return x; }
};
template <>
struct Narrow<Half> {
  static Half from(float x) { return to_half(x); }
};
template <>
struct Narrow<Bfloat> {
  static Bfloat from(float x) { return to_bfloat(x); }
};

// A denormal becomes a zero of its sign.
inline float flushed(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return std::bit_cast<float>((bits & 0x7f800000u) == 0 ? bits & 0x80000000u : bits);
}
inline double flushed(double x) { return x; }
inline Half flushed(Half x) {
  return {static_cast<uint16_t>((x.bits & 0x7c00u) == 0 ? x.bits & 0x8000u : x.bits)};
}
inline Bfloat flushed(Bfloat x) { return x; }

// .sat: to 0 .. 1, and 0 of NaN.
inline float saturated(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline double saturated(double x) { return x > 0.0 ? (x < 1.0 ? x : 1.0) : 0.0; }

// .rn, .rz, .rm, .rp
enum class Rounding { kNearest, kZero, kDown, kUp };

// A number that no float lies between it and x: x, or if `rest` of it was lost, the double beside
// it with an odd mantissa. It rounds to fewer bits as the exact number does.
inline double to_odd(double x, double rest) {
  const uint64_t bits = std::bit_cast<uint64_t>(x);
  // Whether the number is further from 0 than x is.
  const bool outwards = (rest < 0) == (x < 0);
  const uint64_t moved = outwards ? bits : bits - 1;
  const bool exact = !(rest != 0) || !(std::fabs(x) <= std::numeric_limits<double>::max());
  return std::bit_cast<double>(exact ? bits : moved | 1);
}

// a + b without an error that matters to what is rounded next.
inline double exact_sum(double a, double b) {
  const double sum = a + b;
  const double part = sum - a;
  const double rest = (a - (sum - part)) + (b - part);
  return to_odd(sum, rest);
}

// Of a double that holds the exact number, or is odd.
inline float rounded(double x, Rounding rounding) {
  const float nearest = static_cast<float>(x);
  if (rounding == Rounding::kNearest || !(std::fabs(x) <= std::numeric_limits<double>::max())) {
    return nearest;
  }
  const bool down = rounding == Rounding::kDown || (rounding == Rounding::kZero && x > 0);
  if (down && nearest > x) return std::nextafter(nearest, -std::numeric_limits<float>::infinity());
  if (!down && nearest < x) return std::nextafter(nearest, std::numeric_limits<float>::infinity());
  return nearest;
}

// f32 whose product is exact in a double.
inline float fused(float a, float b, float c) { return std::fma(a, b, c); }
inline double fused(double a, double b, double c) { return std::fma(a, b, c); }
// Of halves and bfloats, to be rounded once: a float that is odd where something was lost.
inline float fused_narrow(float a, float b, float c) {
  const double odd = exact_sum(static_cast<double>(a) * b, c);
  // From a double that is odd to a float that is.
  const float nearest = static_cast<float>(odd);
  return static_cast<float>(nearest) == odd ? nearest : [&] {
    const uint32_t bits = std::bit_cast<uint32_t>(nearest);
    const bool too_far = std::fabs(static_cast<double>(nearest)) > std::fabs(odd);
    return std::bit_cast<float>((too_far ? bits - 1 : bits) | 1);
  }();
}

}  // namespace xlnet_fast::ptx
