// Relative attention backward, the kernel that owns rows: dq, and what the two others need of rows.
//
// With P the softmax, made again from the statistic of its row, and Z the dropout factor,
//
//     dP_ij = Z_ij dO_i . v_j       D_i = sum_j P_ij dP_ij       dS = P (dP - D)
//     dq_i  = scale (sum_j dS_ij k_j + sum_j dS_ij r_{j - pos_i + L}) + dc_i (seg_embed_1 -
//     seg_embed_0) dc_i  = scale sum_j dS_ij [segments differ]
//
// D_i is first taken as dO_i . O_i. O is rounded to half precision, so the exact sum is kept as
// well: it corrects dc, whose bias gradient has one free number a head, and serves the other
// kernels. P's statistics are rounded too: the sum of P mends what is linear in a row of P, here
// and there.
#pragma once

#include "rel_attention.h"
#include "row_tile.cuh"

namespace xlnet_fast::cuda {

template <class Shape, bool kInOrder>
struct BackwardQTile : RowTile<Shape, kInOrder> {
  using Base = RowTile<Shape, kInOrder>;
  using Element = typename Base::Element;
  using Side = typename Base::Side;
  using Scores = typename Base::Scores;
  static constexpr int D = Base::D, Keys = Base::Keys;
  using Base::at;
  using Base::head;
  using Base::keys;
  using Base::rows;
  using Base::stream;

  Side d_out;
  enum Number : int { kC, kLse, kDelta };
  float exact[2] = {0.0f, 0.0f}, total[2] = {0.0f, 0.0f};  // sums of P dP and of P
  float d_c[2] = {0.0f, 0.0f}, p_c[2] = {0.0f, 0.0f};  // sums of dS and of P where segments differ
  Result<D / 8> dq;

  XLNET_FAST_DEVICE BackwardQTile(const AttentionCall& call, const AttentionStream& its_stream,
                                  int b, int n, int tile)
      : Base(call, its_stream, b, n, tile), d_out(Shape::kSides + 2 * Side::kBytes, at) {
    const auto d_out_row = [&](int upper) { return rows.row(stream.d_out, head.n, upper); };
    const auto out_row = [&](int upper) { return rows.row(stream.out, head.n, upper); };
    load_left<Element, D>(d_out, d_out_row, nullptr, head.head_dim(), at);
    float delta[2], lse[2];
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      delta[upper] = 0.0f, lse[upper] = infinity();
#pragma unroll
      for (int n8 = 0; n8 < D / 8; ++n8) {
        const int d = 8 * n8 + 2 * at.t;
        const Pair x = load_pair<Element>(d_out_row(upper), d, head.head_dim());
        const Pair y = load_pair<Element>(out_row(upper), d, head.head_dim());
        delta[upper] += x.low * y.low + x.high * y.high;
      }
      delta[upper] = sum_of_row(delta[upper]);
      if (rows.exists(upper)) {
        lse[upper] = load(stream.stats + head.flat() * stream.rows + rows.index(upper));
      }
    }
    this->park_numbers(kLse, lse), this->park_numbers(kDelta, delta);
    warp_barrier();
    clear<D / 8>(dq);
  }

  // A row that sees no key is uniform.
  XLNET_FAST_DEVICE bool is_even(int upper, const float (&lse)[2]) const {
    return rows.present(upper) && lse[upper] == infinity();
  }

  XLNET_FAST_DEVICE void attend() {
    const float scale = keys.scale * kLog2E, even = 1.0f / static_cast<float>(head.keys());
    float lse[2];
    this->get_numbers(kLse, lse);
    const bool some_even = any_of_block(is_even(0, lse) || is_even(1, lse));
    this->padded_too = this->padded_too || (some_even && head.padded());
    int begin, end;
    this->tiles_of_keys(begin, end, some_even);
    const auto add_tile = [&](Scores& scores, const auto& sight, uint32_t kept, int step, int j0) {
      const float keep_scale = keys.dropout ? keys.keep_scale : 1.0f;
      float c[2], lse[2], delta[2];
      Scores d_p;
      clear<Keys / 8>(d_p);
      add_product_transposed<Element, D, Keys / 8>(d_p, d_out, Base::v(step), 0, at.lane);
      this->get_numbers(kC, c), this->get_numbers(kLse, lse), this->get_numbers(kDelta, delta);
      for_each_score<Keys / 8>([&](int n, int e) {
        const int upper = e / 2;
        const bool differs = sight.other(n, e);
        bool sees = sight.sees(n, e) && rows.present(upper);
        const float s = scores[n][e] * scale + (differs ? c[upper] : 0.0f);
        float p = sees ? power_of_two(s - lse[upper]) : 0.0f;
        if (is_even(upper, lse) && j0 + 8 * n + 2 * at.t + e % 2 < head.keys())
          p = even, sees = true;
        const float dp = sees && has(kept, n, e) ? d_p[n][e] * keep_scale : 0.0f;
        const float ds = p * (dp - delta[upper]);
        exact[upper] += p * dp, total[upper] += p;
        if (differs) d_c[upper] += ds, p_c[upper] += p;
        scores[n][e] = ds;
      });
      add_product<Element, D, Keys / 8>(dq, scores, Base::k(step), at.lane);
      this->with_window(j0, step, [&](const auto& window, const auto& shift) {
        add_moved_product<Element, D, Keys>(dq, scores, window, this->strip(), shift, at);
      });
    };
    this->for_each_tile(begin, end, add_tile);
  }

  XLNET_FAST_DEVICE void finish() {
    float norm[2], factor[2], c[2], delta[2];
    this->get_numbers(kC, c), this->get_numbers(kDelta, delta);
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const bool present = rows.present(upper);
      const float sum = sum_of_row(total[upper]);
      norm[upper] = present ? 1.0f / sum : 1.0f;
      exact[upper] = sum_of_row(exact[upper]) * norm[upper];
      factor[upper] = keys.scale * norm[upper];
      const float mended = sum_of_row(d_c[upper] + (delta[upper] - exact[upper]) * p_c[upper]);
      d_c[upper] = present ? mended * factor[upper] : 0.0f;
      if (!present) exact[upper] = 0.0f;
    }
    this->store_of_rows(stream.delta, exact);
    this->store_of_rows(stream.norm, norm);
    if (head.segmented()) {
      this->store_of_rows(stream.c, c);
      this->store_of_rows(stream.d_c, d_c);
    }
    if (stream.d_q.data == nullptr) return;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      Pair other{0.0f, 0.0f}, same{0.0f, 0.0f};
      if (head.segmented()) {
        same = load_pair<Element>(head.seg_embed(0), 8 * n + 2 * at.t, head.head_dim());
        other = load_pair<Element>(head.seg_embed(1), 8 * n + 2 * at.t, head.head_dim());
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float difference = e % 2 == 0 ? other.low - same.low : other.high - same.high;
        dq[n][e] = dq[n][e] * factor[e / 2] + d_c[e / 2] * difference;
        if (!rows.present(e / 2)) dq[n][e] = 0.0f;
      }
    }
    this->write_result(stream.d_q, dq, {1.0f, 1.0f});
  }
};

template <class Shape, int kSharedBytes>
XLNET_FAST_KERNEL(Shape::kThreads, 1)
rel_attention_backward_q_kernel(XLNET_FAST_PARAMETER RowCall row_call) {
  run_row_tile<Shape, BackwardQTile>(row_call);
}

template <class Shape>
void launch_rel_attention_backward_q(const AttentionCall& call, Stream stream) {
  launch_row_tiles<Shape>(&rel_attention_backward_q_kernel<Shape, Shape::kSharedBytes>, call,
                          stream);
}

}  // namespace xlnet_fast::cuda
