// From Python's keyword arguments to the struct of masked_softmax, as in bindings_attention.h.
#pragma once

#include "bindings_attention.h"

namespace xlnet_fast {

inline MaskedSoftmaxParams masked_softmax_params(const pybind11::dict& dict) {
  MaskedSoftmaxParams p;
  Fields take(dict);
  take("dtype", p.dtype), take("batch", p.batch), take("heads", p.heads), take("rows", p.rows);
  take("keys", p.keys), take("memory", p.memory), take("table", p.table);
  take("scores", p.scores), take("position_scores", p.position_scores);
  take("segment_scores", p.segment_scores), take("segments_q", p.segments_q);
  take("segments_k", p.segments_k), take("positions", p.positions);
  take("key_padding", p.key_padding), take("rank_q", p.rank_q), take("rank_k", p.rank_k);
  take("bits", p.bits), take("bits_batch_stride", p.bits_batch_stride);
  take("causal", p.causal), take("same_length", p.same_length), take("see_self", p.see_self);
  take("window_left", p.window_left), take("window_right", p.window_right), take("chunk", p.chunk);
  take("scale", p.scale), take("keep_scale", p.keep_scale), take("keep_from", p.keep_from);
  take("seed", p.seed), take("dropout", p.dropout), take("out", p.out), take("d_out", p.d_out);
  take("d_scores", p.d_scores), take("d_position_scores", p.d_position_scores);
  take("d_segment_scores", p.d_segment_scores), take("seed_at", p.seed_at);
  take.done();
  return p;
}

}  // namespace xlnet_fast
