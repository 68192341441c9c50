"""Faults of the Triton kernels, found by their interpreter. Cases by name: it is slow."""

from __future__ import annotations

import functools

from mutant_fault import faults_of

interpreted = functools.partial(faults_of, interpreted=True)
ATTENTION = "kernels/_interpreter_rel_attention.py"
SMALL_OPS = "kernels/_interpreter_small_ops.py"
TILES = "xlnet_fast/kernels/triton/tile_ops.py"
FORWARD = "xlnet_fast/kernels/triton/rel_attention_forward.py"
BACKWARD_Q = "xlnet_fast/kernels/triton/rel_attention_backward_q.py"
BACKWARD_KV = "xlnet_fast/kernels/triton/rel_attention_backward_kv.py"
SOFTMAX = "xlnet_fast/kernels/triton/masked_softmax.py"

FAULTS = [
    *interpreted(
        TILES,
        ATTENTION,
        (
            "triton: same_length hides a row's own position",
            "m_seen = m_seen & (o_j[None, :] >= b_pos[:, None])",
            "m_seen = m_seen & (o_j[None, :] > b_pos[:, None])",
        ),
        select="interpreted and masks-same-length",
    ),
    *interpreted(
        TILES,
        ATTENTION,
        (
            "triton: the last key that is not padded is left out",
            "i_stop = tl.maximum(i_stop, tl.max(tl.where(m_seen, o_j + 1, 0), axis=0))",
            "i_stop = tl.maximum(i_stop, tl.max(tl.where(m_seen, o_j, 0), axis=0))",
        ),
        select="interpreted and masks-padding",
    ),
    *interpreted(
        TILES,
        ATTENTION,
        (
            "triton: rows of r beyond the table are read",
            "mask=((o_p >= START) & (o_p < r_stop))[None, :] & (o_d < D)[:, None], other=0.0,",
            "mask=(o_p >= START)[None, :] & (o_d < D)[:, None], other=0.0,",
        ),
        select="interpreted and shapes-uni",
    ),
    *interpreted(
        TILES,
        ATTENTION,
        (
            "triton: a window ends a chunk early for the rows that keys look for",
            "i_to = tl.cdiv(i_to, chunk) * chunk",
            "i_to = i_to // chunk * chunk",
        ),
        select="gradients and window-chunks",
    ),
    *interpreted(
        TILES,
        ATTENTION,
        (
            "triton: all keys are gone over, whatever the window",
            "i_hi = tl.minimum(i_hi, _window_start(i_top, i_top + memory, chunk) + ahead)",
            "i_hi = i_hi",
        ),
        select="left_out and window-plain",
    ),
    *interpreted(
        BACKWARD_KV,
        ATTENTION,
        (
            "triton: rows that see no key give nothing to keys beyond their window",
            "PARTS: tl.constexpr = 3 if WINDOWED and FULLY_MASKED else 1",
            "PARTS: tl.constexpr = 1",
        ),
        select="gradients and window-padding",
    ),
    *interpreted(
        TILES,
        ATTENTION,
        (
            "triton: current keys counted from the memory's first",
            "x = tl.where(in_memory, x_memory, x - memory.to(tl.int64) * s_row)",
            "x = tl.where(in_memory, x_memory, x - memory.to(tl.int64) * s_memory)",
        ),
        select="interpreted and apart-aligned",
    ),
    *interpreted(
        FORWARD,
        ATTENTION,
        (
            "triton: the running sum does not shrink",
            "b_sum = b_sum * b_shrink + tl.sum(b_p, axis=1)",
            "b_sum = b_sum + tl.sum(b_p, axis=1)",
        ),
        select="interpreted and shapes-groups or interpreted and masks-causal",
    ),
    *interpreted(
        FORWARD,
        ATTENTION,
        (
            "triton: dropout of a row's own key is another's",
            "m_keep_self = _keep_one(tl.load(seed), o_i, b_self, i_bn, keep_from)",
            "m_keep_self = _keep_one(tl.load(seed), b_self, b_self, i_bn, keep_from)",
        ),
        select="interpreted and dropout-self",
    ),
    *interpreted(
        BACKWARD_Q,
        ATTENTION,
        (
            "triton: dq lacks the position part",
            "b_dq = (b_dqw + b_dqr) * scale",
            "b_dq = b_dqw * scale",
        ),
        select="gradients and shapes-d80",
    ),
    *interpreted(
        BACKWARD_Q,
        ATTENTION,
        (
            "triton: dc is not corrected for what O was rounded",
            "b_dc = tl.where(m_row, (b_dc + (b_delta - b_exact) * b_pc) * b_norm * scale, 0.0)",
            "b_dc = tl.where(m_row, b_dc * b_norm * scale, 0.0)",
        ),
        select="gradients and apart-hidden-rows",
    ),
    *interpreted(
        BACKWARD_KV,
        ATTENTION,
        (
            "triton: dv of probabilities before dropout",
            "b_kept = tl.where(m_keep, b_p * keep_scale, 0.0)",
            "b_kept = b_p",
        ),
        select="gradients and dropout-plain",
    ),
    *interpreted(
        SOFTMAX,
        SMALL_OPS,
        (
            "triton: softmax's gradient is not scaled",
            "            b_ds = tl.exp(b_s - b_max[:, None]) / b_sum[:, None] * "
            "(b_dp - b_dot[:, None]) * scale",
            "            b_ds = tl.exp(b_s - b_max[:, None]) / b_sum[:, None] * "
            "(b_dp - b_dot[:, None])",
        ),
        select="shapes-130 or shapes-positions",
    ),
    *interpreted(
        "xlnet_fast/kernels/triton/concat_memory.py",
        SMALL_OPS,
        (
            "triton: the last elements of the memory come from the segment",
            "m_memory = o_e < boundary - i_joined",
            "m_memory = o_e < boundary - i_joined - 1",
        ),
        select="memory",
    ),
]
