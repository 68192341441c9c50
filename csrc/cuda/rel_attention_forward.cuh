// Relative attention forward: flash attention whose scores get a position and a segment term.
//
//     s[i,j] = scale * ((q_i + r_w_bias) . k_j + (q_i + r_r_bias) . r_{j - pos_i + L}
//                       + [segments differ] c_i),     out_i = sum_j softmax(s)_ij v_j
//
// Rows that see no key are uniform over all J keys, as HF's -1e30 makes them: a second loop, which
// only the few blocks that have such rows enter. Their statistic is +inf. k and v of padded keys
// are zero and not loaded, but in these blocks and where rows see their own key, padded or not; NaN
// and infinity in them then count as zero.
#pragma once

#include "rel_attention.h"
#include "row_tile.cuh"

namespace xlnet_fast::cuda {

template <class Shape, bool kInOrder>
struct ForwardTile : RowTile<Shape, kInOrder> {
  using Base = RowTile<Shape, kInOrder>;
  using Element = typename Base::Element;
  using Scores = typename Base::Scores;
  static constexpr int D = Base::D, Keys = Base::Keys, kThreads = Base::kThreads;
  using Base::at;
  using Base::head;
  using Base::keys;
  using Base::rows;
  using Base::stream;

  float highest[2] = {-1e30f, -1e30f}, sum[2] = {0.0f, 0.0f};
  Result<D / 8> out;

  XLNET_FAST_DEVICE ForwardTile(const AttentionCall& call, const AttentionStream& its_stream, int b,
                                int n, int tile)
      : Base(call, its_stream, b, n, tile) {
    clear<D / 8>(out);
  }

  // The online softmax: scores become probabilities without their denominator.
  XLNET_FAST_DEVICE void rescale(Scores& scores) {
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      float next = highest[upper];
#pragma unroll
      for (int n = 0; n < Keys / 8; ++n) {
        next = greatest(next, greatest(scores[n][2 * upper], scores[n][2 * upper + 1]));
      }
      next = greatest_of_row(next);
      const float shrink = power_of_two(highest[upper] - next);
      highest[upper] = next;
      float mine = 0.0f;  // of this lane's columns
#pragma unroll
      for (int n = 0; n < Keys / 8; ++n) {
#pragma unroll
        for (int e = 2 * upper; e < 2 * upper + 2; ++e) {
          scores[n][e] = power_of_two(scores[n][e] - next);
          mine += scores[n][e];
        }
      }
      sum[upper] = sum[upper] * shrink + mine;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) out[n][2 * upper] *= shrink, out[n][2 * upper + 1] *= shrink;
    }
  }

  XLNET_FAST_DEVICE void drop(Scores& scores, uint32_t kept) const {
    if (!keys.dropout) return;
    for_each_score<Keys / 8>(
        [&](int n, int e) { scores[n][e] = has(kept, n, e) ? scores[n][e] : 0.0f; });
  }

  XLNET_FAST_DEVICE void attend() {
    const float scale = keys.scale * kLog2E;
    int begin, end;
    this->tiles_of_keys(begin, end, false);
    const auto add_tile = [&](Scores& scores, const auto& sight, uint32_t kept, int step, int) {
      float c[2];
      this->get_numbers(0, c);
      for_each_score<Keys / 8>([&](int n, int e) {
        const float s = scores[n][e] * scale + (sight.other(n, e) ? c[e / 2] : 0.0f);
        scores[n][e] = sight.sees(n, e) ? s : -infinity();
      });
      rescale(scores);
      drop(scores, kept);
      add_product<Element, D, Keys / 8>(out, scores, Base::v(step), at.lane);
    };
    this->for_each_tile(begin, end, add_tile);
  }

  // Adds the values of all keys to the rows that saw none.
  XLNET_FAST_DEVICE void attend_evenly() {
    const Tile<D> v = Base::v(0);
    for (int j0 = 0; j0 < head.keys(); j0 += Keys) {
      block_barrier();
      copy_keys<D, Keys, kThreads>({v}, {head.v()}, head, j0, true, at.thread);
      commit_copies();
      wait_copies<0>();
      clean_padded_keys<Element, D, Keys, kThreads>(v, head, j0, at.thread);
      block_barrier();
      Scores even;
      for_each_score<Keys / 8>([&](int n, int e) {
        const bool exists = j0 + 8 * n + 2 * at.t + e % 2 < head.keys();
        even[n][e] = exists && sum[e / 2] == 0.0f ? 1.0f : 0.0f;
      });
      drop(even, kept_scores<Keys / 8>(rows, head, j0, at));
      add_product<Element, D, Keys / 8>(out, even, v, at.lane);
    }
  }

  XLNET_FAST_DEVICE void finish() {
    // No sum is zero but that of a row that saw no key: a seen key adds 2^0 to it once.
    sum[0] = sum_of_row(sum[0]), sum[1] = sum_of_row(sum[1]);
    const bool sees_nothing =
        (rows.present(0) && sum[0] == 0.0f) || (rows.present(1) && sum[1] == 0.0f);
    if (any_of_block(sees_nothing)) attend_evenly();
    float factor[2], lse[2];
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const bool present = rows.present(upper), none = sum[upper] == 0.0f;
      const float total = none ? static_cast<float>(head.keys()) : sum[upper];
      factor[upper] = present ? (keys.dropout ? keys.keep_scale : 1.0f) / total : 0.0f;
      lse[upper] = none || !present ? infinity() : highest[upper] + log_of_two(total);
    }
    this->store_of_rows(stream.stats, lse);
    this->write_result(stream.out, out, factor);
  }
};

template <class Shape, int kSharedBytes>
XLNET_FAST_KERNEL(Shape::kThreads, 1)
rel_attention_forward_kernel(XLNET_FAST_PARAMETER RowCall row_call) {
  run_row_tile<Shape, ForwardTile>(row_call);
}

template <class Shape>
void launch_rel_attention_forward(const AttentionCall& call, Stream stream) {
  launch_row_tiles<Shape>(&rel_attention_forward_kernel<Shape, Shape::kSharedBytes>, call, stream);
}

}  // namespace xlnet_fast::cuda
