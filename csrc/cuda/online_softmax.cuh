// What both forward kernels do with scores: the online softmax, and rows that see no key.
#pragma once

#include "row_tile.cuh"

namespace xlnet_fast::cuda {

// Maximum and sum of the two rows that a thread holds, over the keys so far. The maximum is the
// row's, in units of log2; the sum is that of the thread's own columns, and the row's after
// finish().
struct OnlineSoftmax {
  float max[2] = {-1e30f, -1e30f}, sum[2] = {0.0f, 0.0f};

  // Scores become probabilities without their denominator; `out`, of the tiles before, is rescaled
  // to the maximum that is now known.
  template <int Tiles, int OutTiles>
  XLNET_FAST_DEVICE void add(Accumulator<Tiles>& scores, Accumulator<OutTiles>& out) {
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      float next = max[upper];
#pragma unroll
      for (int n = 0; n < Tiles; ++n) {
        next = maximum(next, maximum(scores[n][2 * upper], scores[n][2 * upper + 1]));
      }
      next = row_max(next);
      const float rescale = exp2_approx(max[upper] - next);
      max[upper] = next;
      float columns_sum = 0.0f;
#pragma unroll
      for (int n = 0; n < Tiles; ++n) {
#pragma unroll
        for (int e = 2 * upper; e < 2 * upper + 2; ++e) {
          scores[n][e] = exp2_approx(scores[n][e] - next);
          columns_sum += scores[n][e];
        }
      }
      sum[upper] = sum[upper] * rescale + columns_sum;
#pragma unroll
      for (int n = 0; n < OutTiles; ++n) {
        out[n][2 * upper] *= rescale, out[n][2 * upper + 1] *= rescale;
      }
    }
  }

  XLNET_FAST_DEVICE void finish() { sum[0] = row_sum(sum[0]), sum[1] = row_sum(sum[1]); }

  // Whether a row saw no key: a seen key adds 2^0 to the sum once. After finish().
  XLNET_FAST_DEVICE bool saw_nothing(int upper) const { return sum[upper] == 0.0f; }
};

// Products become scores in units of log2: scaled, with the segment score where segments differ,
// and minus infinity where the mask hides the key.
template <class Shape, class TheMask>
XLNET_FAST_DEVICE void scale_and_mask(Accumulator<Shape::Keys / 8>& scores, const TheMask& mask,
                                      const AttentionKeys& keys, const Place& at) {
  const float scale = keys.scale * kLog2E;
  float c[2];
  load_row_scalars<Shape>(0, c, at);
  for_each_score<Shape::Keys / 8>([&](int n, int e) {
    const float s = scores[n][e] * scale + (mask.is_other_segment(n, e) ? c[e / 2] : 0.0f);
    scores[n][e] = mask.is_visible(n, e) ? s : -infinity();
  });
}

// Zeros for the probabilities that dropout does not keep.
template <int Tiles>
XLNET_FAST_DEVICE void drop(Accumulator<Tiles>& p, uint32_t keep, const AttentionKeys& keys) {
  if (!keys.dropout) return;
  for_each_score<Tiles>([&](int n, int e) { p[n][e] = is_kept(keep, n, e) ? p[n][e] : 0.0f; });
}

// Adds the values of all keys to the rows that saw none, whose softmax is uniform. For the whole
// block, which has no copies under way.
template <class Shape, class TheRows>
XLNET_FAST_DEVICE void add_uniform_rows(Accumulator<Shape::D / 8>& out,
                                        const OnlineSoftmax& softmax, const TheRows& rows,
                                        const Head& head, const Place& at) {
  using Element = typename Shape::Element;
  constexpr int D = Shape::D, Keys = Shape::Keys, kThreads = Shape::kThreads;
  const Tile<D> v = Shape::v(0);
  for (int j0 = 0; j0 < head.keys(); j0 += Keys) {
    block_barrier();
    copy_keys<D, Keys, kThreads>({v}, {head.v()}, head, j0, true, at.thread);
    commit_copies();
    wait_copies<0>();
    clean_padded_keys<Element, D, Keys, kThreads>(v, head, j0, at.thread);
    block_barrier();
    Accumulator<Keys / 8> p;
    for_each_score<Keys / 8>([&](int n, int e) {
      const bool exists = j0 + 8 * n + 2 * at.t + e % 2 < head.keys();
      p[n][e] = exists && softmax.saw_nothing(e / 2) ? 1.0f : 0.0f;
    });
    drop<Keys / 8>(p, dropout_keep_mask<Keys / 8>(rows, head, j0, at), head.all);
    add_product<Element, D, Keys / 8>(out, p, v, at.lane);
  }
}

// What the rows' tiles left: `out` divided by the sums, and the statistic of each row for the
// backward pass.
template <class Shape, class TheRows>
XLNET_FAST_DEVICE void finish_rows(Accumulator<Shape::D / 8>& out, OnlineSoftmax& softmax,
                                   const TheRows& rows, const Head& head, const Place& at) {
  const AttentionKeys& keys = head.all;
  softmax.finish();
  const bool some_uniform =
      (rows.present(0) && softmax.saw_nothing(0)) || (rows.present(1) && softmax.saw_nothing(1));
  if (any_of_block(some_uniform)) add_uniform_rows<Shape>(out, softmax, rows, head, at);
  float factor[2], lse[2];
#pragma unroll
  for (int upper = 0; upper < 2; ++upper) {
    const bool present = rows.present(upper), uniform = softmax.saw_nothing(upper);
    const float total = uniform ? static_cast<float>(head.keys()) : softmax.sum[upper];
    factor[upper] = present ? (keys.dropout ? keys.keep_scale : 1.0f) / total : 0.0f;
    lse[upper] = uniform || !present ? infinity() : softmax.max[upper] + log2_approx(total);
  }
  write_row_scalars(rows.stream.stats, lse, rows, head, at);
  write_result<typename Shape::Element, Shape::D>(rows.stream.out, out, factor, rows, head, at);
}

}  // namespace xlnet_fast::cuda
