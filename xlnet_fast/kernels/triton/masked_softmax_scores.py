"""What both kernels of masked_softmax begin with: a program's rows, and a tile of their scores."""

from __future__ import annotations

from xlnet_fast.kernels.triton import jit, tl
from xlnet_fast.kernels.triton.tile_ops import _expand_bits


@jit()
def _own_rows(positions, rows, heads, BM: tl.constexpr):
    """What a program owns: b * N + n, b, n, rows [BM] and their positions [BM].

    Positions are within 30 bits, so that sums with a key number fit 32.
    """
    n_tiles = tl.cdiv(rows, BM)
    i_bn = tl.program_id(0) // n_tiles
    i_b = (i_bn // heads).to(tl.int64)
    i_n = (i_bn % heads).to(tl.int64)
    o_i = (tl.program_id(0) % n_tiles) * BM + tl.arange(0, BM)
    b_pos = o_i
    if positions is not None:
        b_pos = tl.load(positions + i_b * rows + o_i, mask=o_i < rows, other=0)
        b_pos = tl.minimum(tl.maximum(b_pos, -(2**30)), 2**30).to(tl.int32)
    return i_bn, i_b, i_n, o_i, b_pos


@jit()
def _score_tile(
    operands, sizes, own, j0,  # the kernels' arguments; `_own_rows`; first key
    CAUSAL: tl.constexpr, SAME_LENGTH: tl.constexpr, SEE_SELF: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Scores [BM, BN] in fp32: -1e30 for hidden keys, -inf beyond the last."""
    scores, position_scores, segment_scores, segments, mask, strides = operands
    rows, keys, window, length, width, heads, scale = sizes
    _, i_b, i_n, o_i, b_pos = own
    key_padding, rank_q, rank_k, bits = mask
    segments_q, segments_k = segments
    s_scores, s_position, s_bits = strides
    memory = keys - length
    o_j = j0 + tl.arange(0, BN)
    o_row = o_i.to(tl.int64)
    m_i = o_i < rows
    m_j = o_j < keys

    m_seen = m_j[None, :]
    if key_padding is not None:
        b_padded = tl.load(key_padding + i_b * keys + o_j, mask=m_j, other=1)
        m_seen = m_seen & (b_padded == 0)[None, :]
    if CAUSAL:
        m_seen = m_seen & (o_j[None, :] <= b_pos[:, None] + memory)
    if SAME_LENGTH:
        m_seen = m_seen & (o_j[None, :] >= b_pos[:, None])
    left, ahead, chunk = window
    if left is not None:
        # [BM]
        b_start = b_pos + memory
        if chunk is not None:
            b_within = b_pos % chunk
            b_start -= tl.where(b_within < 0, b_within + chunk, b_within)
        b_start -= left
        # One difference, as the sum of both sides with a large position may not fit 32 bits.
        o_seen = o_j[None, :] - b_start[:, None]
        m_seen = m_seen & (o_seen >= 0) & (o_seen < left + ahead)
    if rank_q is not None:
        # [BM], [BN]
        b_rank_q = tl.load(rank_q + i_b * rows + o_i, mask=m_i, other=0)
        b_rank_k = tl.load(rank_k + i_b * keys + o_j, mask=m_j, other=0)
        m_seen = m_seen & (b_rank_q[:, None] > b_rank_k[None, :])
    if bits is not None:
        n_bytes = (keys + 7) // 8
        o_byte = j0 // 8 + tl.arange(0, BN // 8)
        # [BM, BN / 8]
        b_bits = tl.load(
            bits + i_b * s_bits + o_row[:, None] * n_bytes + o_byte[None, :],
            mask=m_i[:, None] & (o_byte < n_bytes)[None, :], other=0,
        )  # fmt: skip
        m_seen = m_seen & ~_expand_bits(b_bits.to(tl.int32), 8, BM, BN)
    if SEE_SELF:
        m_seen = m_seen | (m_j[None, :] & (o_j[None, :] == b_pos[:, None] + memory))
    # Hidden scores are loaded too: only so does a thread load 16 bytes at once.
    m_load = m_i[:, None] & m_j[None, :]

    # [BM, BN]
    p_scores = scores + i_b * s_scores[0] + i_n * s_scores[1] + o_row * s_scores[2]
    b_s = tl.load(p_scores[:, None] + o_j[None, :], mask=m_load, other=0.0).to(tl.float32)
    if position_scores is not None:
        o_p = o_j[None, :] - b_pos[:, None] + length
        p_position = position_scores + i_b * s_position[0] + i_n * s_position[1]
        # [BM, BN]
        b_s += tl.load(
            (p_position + o_row * s_position[2])[:, None] + o_p,
            mask=m_load & m_seen & (o_p >= 0) & (o_p < width), other=0.0,
        ).to(tl.float32)  # fmt: skip
    if segment_scores is not None:
        p_segment = segment_scores + (i_b * heads + i_n) * rows + o_i
        # [BM], [BM], [BN]
        b_c = tl.load(p_segment, mask=m_i, other=0.0).to(tl.float32)
        b_seg_q = tl.load(segments_q + i_b * rows + o_i, mask=m_i, other=0)
        b_seg_k = tl.load(segments_k + i_b * keys + o_j, mask=m_j, other=0)
        b_s += tl.where(b_seg_q[:, None] != b_seg_k[None, :], b_c[:, None], 0.0)
    b_s = tl.where(m_seen, b_s * scale, -1e30)
    return tl.where(m_j[None, :], b_s, float("-inf"))
