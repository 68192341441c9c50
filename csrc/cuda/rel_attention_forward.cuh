// Relative attention forward: flash attention whose scores get a position and a segment term.
//
//     s[i,j] = scale * ((q_i + r_w_bias) . k_j + (q_i + r_r_bias) . r_{j - i + L}
//                       + [segments differ] c_i),     out_i = sum_j softmax(s)_ij v_j
//
// This kernel is for rows in order: row i is at position i. Rows at positions of their own have
// rel_attention_forward_positions.cuh.
//
// Rows that see no key are uniform over all J keys, as HF's -1e30 makes them: a second loop, which
// only the few blocks that have such rows enter. Their statistic is +inf. k and v of padded keys
// are zero and not loaded, but in these blocks and where rows see their own key, padded or not; NaN
// and infinity in them then count as zero.
#pragma once

#include "online_softmax.cuh"
#include "rel_attention.h"

namespace xlnet_fast::cuda {

template <class Shape, int kSharedBytes>
XLNET_FAST_KERNEL(Shape::kThreads, 1)
rel_attention_forward_kernel(XLNET_FAST_PARAMETER RowCall row_call) {
  using Element = typename Shape::Element;
  using Operand = typename Shape::Operand;
  constexpr int D = Shape::D, Keys = Shape::Keys, kRows = Shape::kRows;
  const Place at = place();
  const RowBlock block = row_block<Shape>(row_call);
  const Head& head = block.head;
  const Rows<true> rows(block.stream, head, block.first_row + 16 * at.warp, at);
  const bool load_padded = sees_padded_keys(block);

  Operand q_w(Shape::kOperands, at), q_r(Shape::kOperands + Operand::kBytes, at);
  load_queries<Shape>(q_w, q_r, rows, head, at);
  OnlineSoftmax softmax;
  Accumulator<D / 8> out;
  clear<D / 8>(out);

  const auto [begin, end] = key_tiles_in_view<Shape, true>(block, at);
  if (begin < end) {
    block_barrier();  // whatever was in shared memory has been read
    begin_kv_copies<Shape>(head, begin, 0, load_padded, at.thread);
    begin_r_copies<Shape, kRows + Keys>(head, block.first_row, begin, 0, 0, at.thread);
    commit_copies();
    if (at.thread < Keys) {
      Shape::metadata(0).write(at.thread, look_up_key(head, begin * Keys + at.thread));
    }
  }
  for (int tile = begin; tile < end; ++tile) {
    const int step = tile - begin, j0 = tile * Keys;
    const bool more = tile + 1 < end;

    // This tile is there once all threads have waited for what they copied; so nobody reads the
    // last one any more, whose place the next tile takes.
    wait_copies<0>();
    if (load_padded) clean_padded_kv<Shape>(head, tile, step, at.thread);
    block_barrier();
    KeyEntry next{};
    if (more) {
      const Head here = head.rematerialized();
      const int thread = optimization_barrier(at.thread);
      begin_kv_copies<Shape>(here, tile + 1, step + 1, load_padded, thread);
      begin_r_copies<Shape, Keys>(here, block.first_row, tile + 1, step + 1, kRows, thread);
      commit_copies();
      if (at.thread < Keys) next = look_up_key(head, j0 + Keys + at.thread);
    }

    // What hides scores, and what dropout keeps: a few words, made before the scores need the
    // registers.
    const auto mask =
        make_mask<Keys / 8>(rows, head.rematerialized(), Shape::metadata(step), j0, at);
    const uint32_t keep = dropout_keep_mask<Keys / 8>(rows, head, j0, at);

    // (q_i + r_r_bias) . r_{j - i + L}, then (q_i + r_w_bias) . k_j added.
    Accumulator<Keys / 8> scores;
    const auto window = warp_window_of_r<Shape>(head, rows, tile, step, at);
    shifted_products<Element, D, Keys>(scores, q_r.in_registers(at), window, Shape::strip(at.warp),
                                       at);
    add_product_transposed<Element, D, Keys / 8>(scores, q_w, Shape::k(step), 0, at.lane);
    scale_and_mask<Shape>(scores, mask, head.all, at);

    softmax.add<Keys / 8, D / 8>(scores, out);
    drop<Keys / 8>(scores, keep, head.all);
    add_product<Element, D, Keys / 8>(out, scores, Shape::v(step), at.lane);
    if (more && at.thread < Keys) Shape::metadata(step + 1).write(at.thread, next);
  }

  finish_rows<Shape>(out, softmax, rows, head, at);
}

template <class Shape>
void launch_rel_attention_forward(const AttentionCall& call, Stream stream) {
  launch_row_tiles<Shape>(&rel_attention_forward_kernel<Shape, Shape::kSharedBytes>, call, stream,
                          [](const AttentionStream& of) { return of.positions == nullptr; });
}

}  // namespace xlnet_fast::cuda
