// Relative attention backward, the kernel whose blocks are tiles of query rows: dq, and what the
// two others need of rows.
//
// With P the softmax, made again from the statistic of its row, and Z the dropout factor,
//
//     dP_ij = Z_ij dO_i . v_j       D_i = sum_j P_ij dP_ij       dS = P (dP - D)
//     dq_i  = scale (sum_j dS_ij k_j + sum_j dS_ij r_{j - pos_i + L})
//             + dc_i (seg_embed_1 - seg_embed_0)
//     dc_i  = scale sum_j dS_ij [segments differ]
//
// D_i is first taken as dO_i . O_i. O is rounded to half precision, so the exact sum is kept as
// well: it corrects dc, whose bias gradient has one free number a head, and serves the other
// kernels. P's statistics are rounded too: the sum of P mends what is linear in a row of P, here
// and there.
#pragma once

#include "rel_attention.h"
#include "row_tile.cuh"

namespace xlnet_fast::cuda {

// Row scalars: the segment score, the statistic of the softmax, both in units of log2, and dO . O.
enum BackwardQScalar : int { kC, kLse, kDelta };

// Sums of a row over its keys, those of the thread's own columns.
struct BackwardQSums {
  float exact[2] = {0.0f, 0.0f}, p[2] = {0.0f, 0.0f};  // of P dP and of P
  float d_c[2] = {0.0f, 0.0f}, p_c[2] = {0.0f, 0.0f};  // of dS and of P where segments differ
};

// dO as an A operand, and row scalars 1 and 2.
template <class Shape, class TheRows>
XLNET_FAST_DEVICE void load_d_out(typename Shape::Operand& d_out, const TheRows& rows,
                                  const Head& head, const Place& at) {
  using Element = typename Shape::Element;
  constexpr int D = Shape::D;
  const AttentionStream& stream = rows.stream;
  const auto d_out_row = [&](int upper) { return rows.row(stream.d_out, head.n, upper); };
  const auto out_row = [&](int upper) { return rows.row(stream.out, head.n, upper); };
  load_operand_a<Element, D>(d_out, d_out_row, nullptr, head.head_dim(), at);
  float delta[2], lse[2];
#pragma unroll
  for (int upper = 0; upper < 2; ++upper) {
    delta[upper] = 0.0f, lse[upper] = infinity();
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const int d = 8 * n + 2 * at.t;
      const Pair x = load_pair<Element>(d_out_row(upper), d, head.head_dim());
      const Pair y = load_pair<Element>(out_row(upper), d, head.head_dim());
      delta[upper] += x.low * y.low + x.high * y.high;
    }
    delta[upper] = row_sum(delta[upper]);
    if (rows.exists(upper)) {
      lse[upper] = load(stream.stats + head.flat() * stream.rows + rows.index(upper));
    }
  }
  store_row_scalars<Shape>(kLse, lse, at), store_row_scalars<Shape>(kDelta, delta, at);
}

// A row that sees no key is uniform.
template <class TheRows>
XLNET_FAST_DEVICE bool is_uniform(const TheRows& rows, int upper, const float (&lse)[2]) {
  return rows.present(upper) && lse[upper] == infinity();
}

// Products with keys from j0 on become dS, d_p those of dO and the values; both are added up.
template <class Shape, class TheRows, class TheMask>
XLNET_FAST_DEVICE void scores_to_d_scores(Accumulator<Shape::Keys / 8>& scores,
                                          const Accumulator<Shape::Keys / 8>& d_p,
                                          BackwardQSums& sums, const TheRows& rows,
                                          const Head& head, const TheMask& mask, uint32_t keep,
                                          int j0, const Place& at) {
  const AttentionKeys& keys = head.all;
  const float scale = keys.scale * kLog2E, of_uniform = 1.0f / static_cast<float>(head.keys());
  const float keep_scale = keys.dropout ? keys.keep_scale : 1.0f;
  float c[2], lse[2], delta[2];
  load_row_scalars<Shape>(kC, c, at), load_row_scalars<Shape>(kLse, lse, at);
  load_row_scalars<Shape>(kDelta, delta, at);
  for_each_score<Shape::Keys / 8>([&](int n, int e) {
    const int upper = e / 2;
    const bool differs = mask.is_other_segment(n, e);
    bool visible = mask.is_visible(n, e) && rows.present(upper);
    const float s = scores[n][e] * scale + (differs ? c[upper] : 0.0f);
    float p = visible ? exp2_approx(s - lse[upper]) : 0.0f;
    if (is_uniform(rows, upper, lse) && j0 + 8 * n + 2 * at.t + e % 2 < head.keys()) {
      p = of_uniform, visible = true;
    }
    const float dp = visible && is_kept(keep, n, e) ? d_p[n][e] * keep_scale : 0.0f;
    const float ds = p * (dp - delta[upper]);
    sums.exact[upper] += p * dp, sums.p[upper] += p;
    if (differs) sums.d_c[upper] += ds, sums.p_c[upper] += p;
    scores[n][e] = ds;
  });
}

// What the rows' tiles left: their scalars for the other kernels, and dq, with the segment's part.
template <class Shape, class TheRows>
XLNET_FAST_DEVICE void finish_d_q(Accumulator<Shape::D / 8>& dq, BackwardQSums& sums,
                                  const TheRows& rows, const Head& head, const Place& at) {
  using Element = typename Shape::Element;
  constexpr int D = Shape::D;
  const AttentionStream& stream = rows.stream;
  float norm[2], factor[2], c[2], delta[2];
  load_row_scalars<Shape>(kC, c, at), load_row_scalars<Shape>(kDelta, delta, at);
#pragma unroll
  for (int upper = 0; upper < 2; ++upper) {
    const bool present = rows.present(upper);
    const float sum = row_sum(sums.p[upper]);
    norm[upper] = present ? 1.0f / sum : 1.0f;
    sums.exact[upper] = row_sum(sums.exact[upper]) * norm[upper];
    factor[upper] = head.all.scale * norm[upper];
    const float mended =
        row_sum(sums.d_c[upper] + (delta[upper] - sums.exact[upper]) * sums.p_c[upper]);
    sums.d_c[upper] = present ? mended * factor[upper] : 0.0f;
    if (!present) sums.exact[upper] = 0.0f;
  }
  write_row_scalars(stream.delta, sums.exact, rows, head, at);
  write_row_scalars(stream.norm, norm, rows, head, at);
  if (head.segmented()) {
    write_row_scalars(stream.c, c, rows, head, at);
    write_row_scalars(stream.d_c, sums.d_c, rows, head, at);
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
      dq[n][e] = dq[n][e] * factor[e / 2] + sums.d_c[e / 2] * difference;
      if (!rows.present(e / 2)) dq[n][e] = 0.0f;
    }
  }
  write_result<Element, D>(stream.d_q, dq, {1.0f, 1.0f}, rows, head, at);
}

template <class Shape, bool kInOrder>
XLNET_FAST_DEVICE void backward_q(const RowBlock& block, const Place& at) {
  using Element = typename Shape::Element;
  using Operand = typename Shape::Operand;
  constexpr int D = Shape::D, Keys = Shape::Keys, kRows = Shape::kRows;
  const Head& head = block.head;
  const Rows<kInOrder> rows(block.stream, head, block.first_row + 16 * at.warp, at);

  Operand q_w(Shape::kOperands, at), q_r(Shape::kOperands + Operand::kBytes, at);
  Operand d_out(Shape::kOperands + 2 * Operand::kBytes, at);
  load_queries<Shape>(q_w, q_r, rows, head, at);
  load_d_out<Shape>(d_out, rows, head, at);
  warp_barrier();  // the row scalars are there
  BackwardQSums sums;
  Accumulator<D / 8> dq;
  clear<D / 8>(dq);

  // Rows that see no key are uniform over all, padded ones too.
  float lse[2];
  load_row_scalars<Shape>(kLse, lse, at);
  const bool some_uniform = any_of_block(is_uniform(rows, 0, lse) || is_uniform(rows, 1, lse));
  const bool load_padded = sees_padded_keys(block) || (some_uniform && head.padded());
  const auto [begin, end] =
      some_uniform ? all_key_tiles<Shape>(head) : key_tiles_in_view<Shape, kInOrder>(block, at);
  if (begin < end) {
    block_barrier();  // whatever was in shared memory has been read
    begin_kv_copies<Shape>(head, begin, 0, load_padded, at.thread);
    if constexpr (kInOrder) {
      begin_r_copies<Shape, kRows + Keys>(head, block.first_row, begin, 0, 0, at.thread);
    }
    commit_copies();
    if (at.thread < Keys) {
      Shape::metadata(0).write(at.thread, look_up_key(head, begin * Keys + at.thread));
    }
  }
  for (int step = 0; step < end - begin; ++step) {
    const int tile = begin + step, j0 = tile * Keys;
    const bool more = tile + 1 < end;

    // As in rel_attention_forward.cuh, down to the scores.
    wait_copies<0>();
    if (load_padded) clean_padded_kv<Shape>(head, tile, step, at.thread);
    block_barrier();
    if (kInOrder && more) {
      const Head here = head.rematerialized();
      const int thread = optimization_barrier(at.thread);
      begin_kv_copies<Shape>(here, tile + 1, step + 1, load_padded, thread);
      begin_r_copies<Shape, Keys>(here, block.first_row, tile + 1, step + 1, kRows, thread);
      commit_copies();
    }
    KeyEntry next{};
    if (more && at.thread < Keys) next = look_up_key(head, j0 + Keys + at.thread);
    const auto mask =
        make_mask<Keys / 8>(rows, head.rematerialized(), Shape::metadata(step), j0, at);
    const uint32_t keep = dropout_keep_mask<Keys / 8>(rows, head, j0, at);
    Accumulator<Keys / 8> scores, d_p;
    shifted_products<Element, D, Keys>(scores, q_r.in_registers(at),
                                       warp_window_of_r<Shape>(head, rows, tile, step, at),
                                       Shape::strip(at.warp), at);
    add_product_transposed<Element, D, Keys / 8>(scores, q_w, Shape::k(step), 0, at.lane);

    // dO . v, dS, and what it adds to dq: dS k, and dS r, shifted back.
    clear<Keys / 8>(d_p);
    add_product_transposed<Element, D, Keys / 8>(d_p, d_out, Shape::v(step), 0, at.lane);
    scores_to_d_scores<Shape>(scores, d_p, sums, rows, head, mask, keep, j0, at);
    add_product<Element, D, Keys / 8>(dq, scores, Shape::k(step), at.lane);
    add_shifted_product<Element, D, Keys>(
        dq, scores, warp_window_of_r<Shape>(head, rows, tile, step, at), Shape::strip(at.warp), at);
    if (!kInOrder && more) {  // not before: windows, which wait for copies, would wait for these
      begin_kv_copies<Shape>(head.rematerialized(), tile + 1, step + 1, load_padded,
                             optimization_barrier(at.thread));
      commit_copies();
    }
    if (more && at.thread < Keys) Shape::metadata(step + 1).write(at.thread, next);
  }

  finish_d_q<Shape>(dq, sums, rows, head, at);
}

template <class Shape, int kSharedBytes>
XLNET_FAST_KERNEL(Shape::kThreads, 1)
rel_attention_backward_q_kernel(XLNET_FAST_PARAMETER RowCall row_call) {
  const RowBlock block = row_block<Shape>(row_call);
  if (block.stream.positions == nullptr) {
    backward_q<Shape, true>(block, place());
  } else {
    backward_q<Shape, false>(block, place());
  }
}

template <class Shape>
void launch_rel_attention_backward_q(const AttentionCall& call, Stream stream) {
  launch_row_tiles<Shape>(&rel_attention_backward_q_kernel<Shape, Shape::kSharedBytes>, call,
                          stream, [](const AttentionStream&) { return true; });
}

}  // namespace xlnet_fast::cuda
