// What all ways of multiplying X W^T + b share: where the words of X and W are, and what follows a
// finished sum.
#pragma once

#include "row_io.h"

namespace xlnet_fast::cpu::XLNET_FAST_ISA {
namespace {

// Words summed one after another; then such sums are. The longer the faster, by 2% from here to
// 384, and the less exact: MKL's fp32 products have the errors of 192.
constexpr int64_t kSummedWords = 192;
constexpr int64_t kPackedWords = 768;  // of a panel, which then stays in the second-level cache

// x Phi(x), by 7.1.26 of Abramowitz and Stegun for erfc, whose error of 1.5e-7 is ATen's too.
XLNET_FAST_INLINE Vec gelu_of(Vec x) {
  const Vec size = select(x < splat(0.0f), -x, x);
  const Vec z = size * splat(0.70710678f);
  const Vec t = splat(1.0f) / multiply_add(z, splat(0.3275911f), splat(1.0f));
  Vec p = multiply_add(t, splat(1.061405429f), splat(-1.453152027f));
  p = multiply_add(p, t, splat(1.421413741f));
  p = multiply_add(p, t, splat(-0.284496736f));
  p = multiply_add(p, t, splat(0.254829592f));
  const Vec outside = p * t * exp_of(-z * z);  // erfc(|x| / sqrt 2)
  // Zero from |x| = 15 on; so infinity is not multiplied by it.
  const Vec bounded = select(size < splat(15.0f), size, splat(15.0f));
  const Vec tail = splat(0.5f) * bounded * outside;
  return select(x < splat(0.0f), -tail, x - tail);
}

template <class Words>
struct RowTypeOf {
  using Type = Float32Row;
};
#if defined(XLNET_FAST_BF16)
template <>
struct RowTypeOf<BFloat16Pairs> {
  using Type = BFloat16Row;
};
#endif

template <class Words>
struct LinearOperands {
  using Type = typename RowTypeOf<Words>::Type;
  const LinearParams& p;

  static const float* words(const char* data, int64_t element) {
    return reinterpret_cast<const float*>(data + element * (4 / Words::kElements));
  }
  int64_t terms() const { return p.terms / Words::kElements; }  // in words
  Left x() const {
    const int64_t step = p.x_term == 1 ? 1 : p.x_term / Words::kElements;
    return {words(p.x, 0), p.x_row / Words::kElements, step};
  }
  // Where word k of a column is, of a weight whose terms are contiguous.
  const float* column_at(int64_t column, int64_t k) const {
    return words(p.weight, column * p.weight_column) + k;
  }
  // Where a column's first element of word k is, of a weight whose columns are contiguous; and how
  // far from there its last one is.
  const Element<Words>* row_at(int64_t k, int64_t column) const {
    const auto* elements = reinterpret_cast<const Element<Words>*>(p.weight);
    return elements + k * Words::kElements * p.weight_term + column;
  }
  int64_t odd_row() const { return (Words::kElements - 1) * p.weight_term; }

  Row<Type> row_of(const char* data, int64_t start) const {
    const auto size = static_cast<int64_t>(sizeof(typename Type::Element));
    return {const_cast<char*>(data) + start * size, 0, {0, p.columns}};
  }

  // One vector of results, finished, to its place.
  XLNET_FAST_INLINE void finish(Vec sum, int64_t i, int64_t column) const {
    if (p.bias != nullptr) sum += row_of(p.bias, 0).load(column);
    if (p.gelu) sum = gelu_of(sum);
    if (p.residual != nullptr) sum += row_of(p.residual, i * p.residual_row).load(column);
    row_of(p.out, i * p.out_row).store(column, sum);
  }
};

}  // namespace
}  // namespace xlnet_fast::cpu::XLNET_FAST_ISA
