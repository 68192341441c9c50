"""Backward kernel of relative attention that owns keys: dk and dv.

Letters and formulas as in `rel_attention_backward.py`. For a stretch of rows a program writes the
strips of its keys, then goes over the rows: 4 matrix products a tile and the window of r,
(BM + BN) / BN of one. Nothing is added in an order that may change.
"""

from __future__ import annotations

from xlnet_fast.kernels.triton import jit, tl
from xlnet_fast.kernels.triton.rel_attention_arguments import Shared
from xlnet_fast.kernels.triton.rel_attention_pointers import (
    _batch_and_head,
    _source_of_head,
)
from xlnet_fast.kernels.triton.tile_ops import (
    SIZES,
    _finite_or_zero,
    _is_finite,
    _keep_tile,
    _load_rows,
    _load_vector,
    _positions_in_window,
    _row_tile,
    _stretch,
    _stretches,
    _uniform_range,
    _visible,
    _write_strip,
)

GEMM_UNITS = 6.0  # at BM = BN


@jit()
def _backward_kv_rows(
    stream, strides, rows, b_k, b_v, b_dk, b_dv, b_code, j0, j_first, j_stop,
    r, strip, i_bn, shared,
    CAUSAL: tl.constexpr, SAME_LENGTH: tl.constexpr, SEE_SELF: tl.constexpr,
    BY_POSITION: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, HEIGHT: tl.constexpr, START: tl.constexpr,
):  # fmt: skip
    """Add what one stream's rows give to dk (not yet scaled) and dv of BN keys, [BN, BD] each."""
    keys, memory, window, biases = shared.keys, shared.memory, shared.window, shared.biases
    log2_scale, keep_from, keep_scale = shared.log2_scale, shared.keep_from, shared.keep_scale
    s_q, s_do, s_r, seed = strides.q, strides.d_out, shared.key_strides.r, stream.seed
    vectors = shared.key_vectors
    padding = vectors.padding
    SEGMENTS: tl.constexpr = stream.segments is not None
    # Whether a row may see no key.
    FULLY_MASKED: tl.constexpr = not SEE_SELF and (
        padding is not None or stream.rank_q is not None or stream.bits is not None
    )
    IN_ORDER: tl.constexpr = stream.positions is None
    BW: tl.constexpr = BM if BM < BN else BN
    MARGIN: tl.constexpr = BM if IN_ORDER else 0
    STRIDE: tl.constexpr = BN + (BM + BW if IN_ORDER else 0)
    i_b, i_n = _batch_and_head(i_bn, shared.heads)
    length = keys - memory
    vector_rows = length if BY_POSITION else rows
    positions = None if stream.positions is None else stream.positions + i_b * rows
    rank_q = None if stream.rank_q is None else stream.rank_q + i_b * vector_rows
    rank_k = None if vectors.rank_k is None else vectors.rank_k + i_b * keys
    bits = None if stream.bits is None else stream.bits + i_b * strides.bits
    # [BN]
    o_j = j0 + tl.arange(0, BN)
    m_in = (o_j >= j_first) & (o_j < j_stop)
    m_j = m_in
    if padding is not None:
        m_j = m_j & (tl.load(padding + i_b * keys + o_j, mask=m_in, other=1) == 0)
    o_tile = tl.arange(0, BM)[:, None] * STRIDE + tl.arange(0, BN)[None, :]
    # Rows that can see any of these keys. Those that see no key are uniform over all: where there
    # may be any, they are looked for only beside a window, which leaves few others.
    WINDOWED: tl.constexpr = IN_ORDER and window[0] is not None
    PARTS: tl.constexpr = 3 if WINDOWED and FULLY_MASKED else 1
    i_lo = keys * 0
    i_hi = keys * 0 + rows
    if IN_ORDER and (WINDOWED or not FULLY_MASKED):
        if CAUSAL:
            i_lo = tl.maximum(j0 - memory, 0)
        if SAME_LENGTH:
            i_hi = tl.minimum(i_hi, j_stop)
        if WINDOWED:
            i_lo, i_hi = _positions_in_window(i_lo, i_hi, j0, j_stop, memory, window)
        if padding is not None:
            i_any = tl.max(m_j.to(tl.int32), axis=0)
            if FULLY_MASKED:
                i_hi = tl.where(i_any > 0, i_hi, i_lo)
            else:
                # All padded: only the queries of these very keys see them.
                i_lo = tl.where(i_any > 0, i_lo, tl.maximum(j0 - memory, 0))
                i_hi = tl.where(i_any > 0, i_hi, tl.minimum(i_hi, tl.maximum(j_stop - memory, 0)))
    i_lo = i_lo // BM * BM
    if PARTS == 3:
        i_behind = tl.cdiv(tl.maximum(i_lo, i_hi), BM) * BM
        p_lse = stream.lse + i_bn.to(tl.int64) * rows
        i_uniform, i_uniform_stop = _uniform_range(p_lse, rows, 1024)
        i_uniform = i_uniform // BM * BM
    for i_part in tl.range(0, PARTS, disable_licm=True):
        i_first = i_lo
        i_end = i_hi
        if PARTS == 3:  # those in the window, then uniform ones before and behind it
            if i_part == 1:
                i_first = i_uniform
                i_end = tl.minimum(i_uniform_stop, i_lo)
            if i_part == 2:
                i_first = tl.maximum(i_uniform, i_behind)
                i_end = i_uniform_stop
        for i_base in tl.range(i_first, i_end, HEIGHT, disable_licm=True):
            i_stop = tl.minimum(i_end, i_base + HEIGHT)
            for i0 in tl.range(i_base, i_stop, BM, disable_licm=True):
                o_i, m_row, b_pos, i_low, i_top = _row_tile(positions, i0, rows, length, BM)
                # [BM, BD]
                p_q = stream.q + i_b * s_q[0] + i_n * s_q[2] + tl.cast(i0, tl.int64) * s_q[1]
                b_qr = _load_rows(p_q, s_q[1], m_row, BM, D, BD)
                b_qr = b_qr.to(tl.float32) + _load_vector(biases.r_r_bias + i_n * D, D, BD)[None, :]
                _write_strip(
                    b_qr.to(b_k.dtype), r, s_r[1],
                    strip + (i0 - i_base) * STRIDE + MARGIN, b_pos, m_row, i_low, i_top, j0, BN,
                    length, shared.r_rows + START, log2_scale, IN_ORDER, D, BD, BM, BW, BN, STRIDE,
                    START,
                )  # fmt: skip
            tl.debug_barrier()
            for i0 in tl.range(i_base, i_stop, BM, disable_licm=True):
                o_i, m_row, b_pos, i_low, i_top = _row_tile(positions, i0, rows, length, BM)
                b_self = b_pos + memory
                o_row = b_pos if BY_POSITION else tl.minimum(o_i, rows - 1)
                i_row = tl.cast(i0, tl.int64)
                # [BM, BD]
                p_q = stream.q + i_b * s_q[0] + i_n * s_q[2] + i_row * s_q[1]
                b_q = _load_rows(p_q, s_q[1], m_row, BM, D, BD)
                p_do = stream.d_out + i_b * s_do[0] + i_n * s_do[2] + i_row * s_do[1]
                b_do = _load_rows(p_do, s_do[1], m_row, BM, D, BD)
                # [BM]
                o_stat = i_bn.to(tl.int64) * rows
                b_lse = tl.load(stream.lse + o_stat + o_i, mask=m_row, other=float("inf"))
                b_delta = tl.load(stream.delta + o_stat + o_i, mask=m_row, other=0.0)
                b_norm = tl.load(stream.norm + o_stat + o_i, mask=m_row, other=0.0)
                # [BM, BN]
                b_bd = tl.load(strip + ((i0 - i_base) * STRIDE + MARGIN) + o_tile)
                b_qw = b_q.to(tl.float32) + _load_vector(biases.r_w_bias + i_n * D, D, BD)[None, :]
                b_qw = b_qw.to(b_k.dtype)
                b_s = tl.dot(b_qw, tl.trans(b_k), input_precision="ieee") * log2_scale + b_bd
                if SEGMENTS:
                    b_c = tl.load(stream.c + o_stat + o_i, mask=m_row, other=0.0)
                    b_seg = tl.load(stream.segments + i_b * vector_rows + o_row).to(tl.int32)
                    b_s += tl.where(b_seg[:, None] != b_code[None, :], b_c[:, None], 0.0)
                m_seen = _visible(
                    m_j[None, :], o_j, b_pos, b_self, rank_q, o_row, rank_k, bits, j0,
                    keys, window, CAUSAL, SAME_LENGTH, BM, BN,
                )  # fmt: skip
                if SEE_SELF:
                    m_seen = m_seen | ((o_j[None, :] == b_self[:, None]) & m_in[None, :])
                m_seen = m_seen & m_row[:, None]
                b_p = tl.exp2(b_s - b_lse[:, None]) * b_norm[:, None]
                b_p = tl.where(m_seen, b_p, 0.0)
                if FULLY_MASKED:
                    m_all_masked = m_row & (b_lse == float("inf"))
                    m_uniform = m_all_masked[:, None] & m_in[None, :]
                    b_p = tl.where(m_uniform, 1.0 / keys, b_p)
                    m_seen = m_seen | m_uniform
                b_dp = tl.dot(b_do, tl.trans(b_v), input_precision="ieee")
                b_kept = b_p
                if seed is not None:
                    m_keep = _keep_tile(tl.load(seed), o_i, j0, i_bn, keep_from, BM, BN)
                    b_dp = tl.where(m_keep, b_dp * keep_scale, 0.0)
                    b_kept = tl.where(m_keep, b_p * keep_scale, 0.0)
                b_dv = tl.dot(tl.trans(b_kept.to(b_k.dtype)), b_do, b_dv, input_precision="ieee")
                b_ds = tl.where(m_seen, b_p * (b_dp - b_delta[:, None]), 0.0)
                b_dk = tl.dot(tl.trans(b_ds.to(b_k.dtype)), b_qw, b_dk, input_precision="ieee")
            tl.debug_barrier()  # the strip is free again
    return b_dk, b_dv


@jit(do_not_specialize=[*SIZES, "batch"])
def _backward_kv_kernel(
    content, query,  # `BackwardKVStream`; query None where there is one stream
    strides_h, strides_g,  # `BackwardKVStrides`
    rows_h, rows_g, key_tensors, key_strides, biases, key_vectors,  # as in the forward kernel
    grads, grad_strides,  # `KeyGrads` twice
    strips,  # scratch (programs, strip)
    batch, heads, keys, memory,  # B, N, J, M
    left, ahead, chunk,  # `launch.window`
    r_rows, group_size,  # P, B / G
    scale, log2_scale, keep_from, keep_scale,
    CAUSAL: tl.constexpr, SAME_LENGTH: tl.constexpr, SELF: tl.constexpr, BY_POSITION: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BM_G: tl.constexpr, BN: tl.constexpr,
    HEIGHT: tl.constexpr, START: tl.constexpr,
):  # fmt: skip
    s_key, s_grad = key_strides, grad_strides
    APART: tl.constexpr = key_tensors.k_memory is not None
    o_d = tl.arange(0, BD)
    n_memory, tiles = _stretches(keys * 0, keys, memory, APART, BN, BN)
    shared = Shared(
        key_tensors=key_tensors, key_strides=key_strides, biases=biases, key_vectors=key_vectors,
        heads=heads, keys=keys, memory=memory, window=(left, ahead, chunk), r_rows=r_rows,
        group_size=group_size, log2_scale=log2_scale, keep_from=keep_from, keep_scale=keep_scale,
    )  # fmt: skip
    strip = strips + tl.program_id(0).to(tl.int64) * (HEIGHT * (BN + 2 * BM) + BM)
    for i_work in tl.range(
        tl.program_id(0), batch * heads * tiles, tl.num_programs(0), disable_licm=True
    ):
        i_bn = i_work // tiles
        i_tile = i_work % tiles
        j0, j_first, j_stop = _stretch(i_tile, n_memory, keys * 0, keys, memory, APART, BN, BN)
        i_b, i_n = _batch_and_head(i_bn, heads)
        in_memory = i_tile < n_memory
        i_key = tl.cast(j0, tl.int64)
        o_j = j0 + tl.arange(0, BN)
        m_in = (o_j >= j_first) & (o_j < j_stop)
        p_k, s_kj = _source_of_head(
            key_tensors.k, s_key.k, key_tensors.k_memory, s_key.k_memory, i_b, i_n, in_memory,
            memory, APART,
        )  # fmt: skip
        p_v, s_vj = _source_of_head(
            key_tensors.v, s_key.v, key_tensors.v_memory, s_key.v_memory, i_b, i_n, in_memory,
            memory, APART,
        )  # fmt: skip
        # [BN, BD]
        b_k = _load_rows(p_k + i_key * s_kj, s_kj, m_in, BN, D, BD)
        b_v = _load_rows(p_v + i_key * s_vj, s_vj, m_in, BN, D, BD)
        if key_vectors.padding is not None:
            m_pad = tl.load(key_vectors.padding + i_b * keys + o_j, mask=m_in, other=0) != 0
            b_k = tl.where(m_pad[:, None], _finite_or_zero(b_k), b_k)
            b_v = tl.where(m_pad[:, None], _finite_or_zero(b_v), b_v)
        b_code = o_j
        if key_vectors.segments is not None:
            p_segments = key_vectors.segments + i_b * keys
            b_code = tl.load(p_segments + o_j, mask=m_in, other=0).to(tl.int32)
        b_dk = tl.zeros((BN, BD), tl.float32)
        b_dv = tl.zeros((BN, BD), tl.float32)
        p_r = key_tensors.r + i_b // group_size * s_key.r[0] + i_n * s_key.r[2]
        if START > 0:
            p_r -= START * s_key.r[1]
        b_dk, b_dv = _backward_kv_rows(
            content, strides_h, rows_h, b_k, b_v, b_dk, b_dv, b_code, j0, j_first, j_stop,
            p_r, strip, i_bn, shared,
            CAUSAL, SAME_LENGTH, SELF[0], BY_POSITION[0], D, BD, BM, BN, HEIGHT, START,
        )  # fmt: skip
        if query is not None:
            b_dk, b_dv = _backward_kv_rows(
                query, strides_g, rows_g, b_k, b_v, b_dk, b_dv, b_code, j0, j_first, j_stop,
                p_r, strip, i_bn, shared,
                CAUSAL, SAME_LENGTH, SELF[1], BY_POSITION[1], D, BD, BM_G, BN, HEIGHT, START,
            )  # fmt: skip
        p_dk, s_dkj = _source_of_head(
            grads.dk, s_grad.dk, grads.dk_memory, s_grad.dk_memory, i_b, i_n, in_memory, memory,
            APART,
        )  # fmt: skip
        p_dv, s_dvj = _source_of_head(
            grads.dv, s_grad.dv, grads.dv_memory, s_grad.dv_memory, i_b, i_n, in_memory, memory,
            APART,
        )  # fmt: skip
        if key_vectors.padding is not None:
            # NaN and infinity of padded keys were read as zero: no gradient goes there.
            b_raw = _load_rows(p_k + i_key * s_kj, s_kj, m_in, BN, D, BD)
            b_dk = tl.where(_is_finite(b_raw) | (m_pad[:, None] == 0), b_dk, 0.0)
            b_raw = _load_rows(p_v + i_key * s_vj, s_vj, m_in, BN, D, BD)
            b_dv = tl.where(_is_finite(b_raw) | (m_pad[:, None] == 0), b_dv, 0.0)
        o_bn = tl.arange(0, BN)
        m_d = m_in[:, None] & (o_d < D)[None, :]
        p_dk += i_key * s_dkj + (o_bn[:, None] * s_dkj + o_d[None, :])
        p_dv += i_key * s_dvj + (o_bn[:, None] * s_dvj + o_d[None, :])
        tl.store(p_dk, (b_dk * scale).to(b_k.dtype), mask=m_d)
        tl.store(p_dv, b_dv.to(b_k.dtype), mask=m_d)
