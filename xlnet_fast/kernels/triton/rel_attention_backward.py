"""Relative attention backward, fused: gradients by recomputation, two kernels, both streams.

Letters as in the forward kernel. With P the softmax, keep the dropout factor and dP its gradient,

    dP_ij = keep_ij dO_i . v_j           D_i  = sum_j P_ij dP_ij          dS = P (dP - D)
    dv_j  = sum_i keep_ij P_ij dO_i      dk_j = scale sum_i dS_ij (q_i + r_w_bias)
    dq_i  = scale (sum_j dS_ij k_j + sum_j dS_ij r_p + dc_i (seg_embed_1 - seg_embed_0))
    dc_i  = sum_j dS_ij [segments differ]
    dr_p  = scale sum_{b in group, i} dS[i, p + pos_i - L] (q_i + r_r_bias)

`_backward_q_kernel` owns rows: dq, dr and the sums that the biases need. Per stretch of keys it
writes the strip of position scores as the forward kernel does, goes over the keys and stores dS in
a second strip, and then over the stretch's rows of r, reading dS shifted back: 6 matrix products a
tile. A program stays with one head and one group of r. It adds to dr atomically, or, where the same
bits are wanted every time, into a copy of dr of its own, which are summed in order at the end.

`_backward_kv_kernel` owns keys: dk and dv. For a stretch of rows it writes the strips of its keys,
then goes over the rows: 4 matrix products a tile and the window of r, (BM + BN) / BN of one.

D_i is first taken as dO_i . O_i. O is rounded to half precision, so the exact sum is kept as well:
it corrects dc, whose bias gradient has one free number a head, and serves the second kernel. So
do P's rounded statistics, by the sum of P.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from xlnet_fast.kernels.triton import jit, tl
from xlnet_fast.kernels.triton.launch import Call, device_guard
from xlnet_fast.kernels.triton.tile_ops import (
    PADDED,
    _finite_or_zero,
    _is_finite,
    _keep_one,
    _keep_tile,
    _load_rows,
    _load_vector,
    _row_tile,
    _self_key,
    _source,
    _stretch,
    _stretches,
    _unpadded_range,
    _visible,
    _write_strip,
)
from xlnet_fast.operands import Keys, Queries

GEMM_UNITS_Q = 6.0
GEMM_UNITS_KV = 5.5  # at BN = 2 BM


@jit()
def _add_rows(p_rows, b_x, o_p, table, D: tl.constexpr, BD: tl.constexpr, ATOMIC: tl.constexpr):
    """Add b_x [BW, BD] to the rows of fp32 that exist: nobody else's if not ATOMIC."""
    o_d = tl.arange(0, BD)
    m_x = ((o_p >= 0) & (o_p < table))[:, None] & (o_d < D)[None, :]
    if ATOMIC:
        tl.atomic_add(p_rows, b_x, mask=m_x, sem="relaxed")
    else:
        tl.store(p_rows, tl.load(p_rows, mask=m_x, other=0.0) + b_x, mask=m_x)


@jit()
def _backward_q_tile(
    stream, strides, rows, i_tile, i_bn,  # this and what follows: of `_backward_q_kernel`
    dr, sums, strips, splits, shared, sizes, keep_from,
    CAUSAL: tl.constexpr, SAME_LENGTH: tl.constexpr, SEE_SELF: tl.constexpr,
    BY_POSITION: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, WIDTH: tl.constexpr, STRIPS: tl.constexpr, ATOMIC: tl.constexpr,
):  # fmt: skip
    """dq of BM rows, and their part of dr and of the sums that the biases need."""
    q, out, d_out, dq, stats, delta, c, positions, segments_q, rank_q, bits, seed = stream
    s_q, s_out, s_do, s_dq, s_bits = strides
    sources, key_strides, tables, key_vectors = shared
    heads, keys, memory, table, group_size, scale, log2_scale, keep_scale = sizes
    k, v, k_memory, v_memory, r = sources
    s_k, s_v, s_km, s_vm, s_r = key_strides
    r_w_bias, r_r_bias, r_s_bias, seg_embed = tables
    key_code, segments_k, key_padding, rank_k = key_vectors
    SEGMENTS: tl.constexpr = segments_q is not None
    HIDES_ROWS: tl.constexpr = not SEE_SELF and (
        key_padding is not None or rank_q is not None or bits is not None
    )
    # Rows that see no key have gradients to padded keys too.
    CLEAN: tl.constexpr = HIDES_ROWS and key_padding is not None
    APART: tl.constexpr = k_memory is not None
    IN_ORDER: tl.constexpr = positions is None
    MARGIN: tl.constexpr = BM if IN_ORDER else 0
    STRIDE: tl.constexpr = WIDTH + (BM + BN if IN_ORDER else 0)
    strip = strips + tl.program_id(0).to(tl.int64) * STRIPS
    d_strip = strip + BM * STRIDE
    i_b = (i_bn // heads).to(tl.int64)
    i_n = (i_bn % heads).to(tl.int64)
    length = keys - memory
    i_row = tl.cast(i_tile * BM, tl.int64)
    q += i_b * s_q[0] + i_n * s_q[2] + i_row * s_q[1]
    out += i_b * s_out[0] + i_n * s_out[2] + i_row * s_out[1]
    d_out += i_b * s_do[0] + i_n * s_do[2] + i_row * s_do[1]
    k += i_b * s_k[0] + i_n * s_k[2]
    v += i_b * s_v[0] + i_n * s_v[2]
    r += i_b // group_size * s_r[0] + i_n * s_r[2]
    if k_memory is not None:
        k_memory += i_b * s_km[0] + i_n * s_km[2]
        v_memory += i_b * s_vm[0] + i_n * s_vm[2]
    if positions is not None:
        positions += i_b * rows
    if key_padding is not None:
        key_padding += i_b * keys
    if key_code is not None:
        key_code += i_b * keys
    if rank_k is not None:
        rank_k += i_b * keys

    o_bn = tl.arange(0, BN)
    o_d = tl.arange(0, BD)
    o_tile = tl.arange(0, BM)[:, None] * STRIDE + o_bn[None, :]
    o_dtile = tl.arange(0, BM)[:, None] * WIDTH + o_bn[None, :]
    o_i, m_row, b_pos, i_low, i_top = _row_tile(positions, i_tile * BM, rows, length, BM)
    b_self = b_pos + memory
    o_row = b_pos if BY_POSITION else tl.minimum(o_i, rows - 1)
    table_rows = length if BY_POSITION else rows
    if rank_q is not None:
        rank_q += i_b * table_rows
    if bits is not None:
        bits += i_b * s_bits
    # [BM, BD]
    b_q = _load_rows(q, s_q[1], m_row, BM, D, BD)
    dtype = b_q.dtype
    b_do = _load_rows(d_out, s_do[1], m_row, BM, D, BD)
    b_o = _load_rows(out, s_out[1], m_row, BM, D, BD)
    # [BM]
    b_d = tl.sum(b_do.to(tl.float32) * b_o.to(tl.float32), axis=1)
    o_stat = i_bn.to(tl.int64) * rows + o_i
    b_lse = tl.load(stats + o_stat, mask=m_row, other=float("inf"))
    m_none = m_row & (b_lse == float("inf"))
    # [BM, BD]
    b_qw = (b_q.to(tl.float32) + _load_vector(r_w_bias + i_n * D, D, BD)[None, :]).to(dtype)
    b_qr = (b_q.to(tl.float32) + _load_vector(r_r_bias + i_n * D, D, BD)[None, :]).to(dtype)
    b_dc = tl.zeros((BM,), tl.float32)  # sum of dS over keys of another segment
    b_pc = tl.zeros((BM,), tl.float32)  # the same sum of P
    b_exact = tl.zeros((BM,), tl.float32)  # sum of P dP
    b_norm = tl.zeros((BM,), tl.float32)  # sum of P: one, but for roundings of the statistics
    if SEGMENTS:
        # [BD], [BM]
        b_diff = _load_vector(seg_embed + (heads + i_n) * D, D, BD)
        b_diff -= _load_vector(seg_embed + i_n * D, D, BD)
        b_rs = _load_vector(r_s_bias + i_n * D, D, BD)
        b_c = tl.sum((b_q.to(tl.float32) + b_rs[None, :]) * b_diff[None, :], axis=1) * log2_scale
        b_seg = tl.load(segments_q + i_b * table_rows + o_row).to(tl.int32)
        tl.store(c + o_stat, b_c, mask=o_i < rows)

    i_lo = keys * 0
    i_hi = keys
    if key_padding is not None:
        i_lo, i_hi = _unpadded_range(key_padding, keys, 1024)
    if CAUSAL:
        i_hi = tl.minimum(i_hi, i_top + memory + 1)
    if SAME_LENGTH:
        i_lo = tl.maximum(i_lo, i_low)
    if HIDES_ROWS:
        i_any = tl.max(m_none.to(tl.int32), axis=0)
        i_lo = tl.where(i_any > 0, 0, i_lo)
        i_hi = tl.where(i_any > 0, keys, i_hi)

    b_dqw = tl.zeros((BM, BD), tl.float32)
    b_dqr = tl.zeros((BM, BD), tl.float32)
    if SEE_SELF:
        b_k1, b_v1 = _self_key(
            k, v, k_memory, v_memory, s_k[1], s_v[1], key_padding, b_self, m_row, memory, D, BD,
        )  # fmt: skip
        b_r1 = _load_vector(r + keys.to(tl.int64) * s_r[1], D, BD)
        b_s1 = tl.sum(b_qw.to(tl.float32) * b_k1.to(tl.float32), axis=1) * log2_scale
        b_s1 += tl.sum(b_qr.to(tl.float32) * b_r1[None, :], axis=1) * log2_scale
        if SEGMENTS:
            b_seg1 = tl.load(segments_k + i_b * keys + b_self).to(tl.int32)
            b_s1 += tl.where(b_seg != b_seg1, b_c, 0.0)
        b_p1 = tl.exp2(b_s1 - b_lse)
        b_dp1 = tl.sum(b_do.to(tl.float32) * b_v1.to(tl.float32), axis=1)
        if seed is not None:
            m_keep1 = _keep_one(tl.load(seed), o_i, b_self, i_bn, keep_from)
            b_dp1 = tl.where(m_keep1, b_dp1 * keep_scale, 0.0)
        b_ds1 = tl.where(m_row, b_p1 * (b_dp1 - b_d), 0.0)
        b_exact += b_p1 * b_dp1
        b_norm += b_p1
        if SEGMENTS:
            b_dc += tl.where(b_seg != b_seg1, b_ds1, 0.0)
            b_pc += tl.where(b_seg != b_seg1, b_p1, 0.0)
        b_dqw = b_ds1[:, None] * b_k1.to(tl.float32)
        b_dqr = b_ds1[:, None] * b_r1[None, :]
        # [1, BD]: a query and its own key meet at row J of r
        b_dr1 = tl.sum(b_ds1[:, None] * b_qr.to(tl.float32), axis=0)[None, :] * scale
        o_1 = tl.full((1,), 0, tl.int32) + keys
        p_dr = dr + (tl.program_id(0) // (splits if ATOMIC else 1)).to(tl.int64) * table * D
        _add_rows(p_dr + (o_1[:, None] * D + o_d[None, :]), b_dr1, o_1, table, D, BD, ATOMIC)

    n_memory, n_stretches = _stretches(i_lo, i_hi, memory, APART, BN, WIDTH)
    for i_stretch in tl.range(0, n_stretches, disable_licm=True):
        j_base, j_first, j_stop = _stretch(
            i_stretch, n_memory, i_lo, i_hi, memory, APART, BN, WIDTH
        )
        # [BM, BD]
        b_qr = _load_rows(q, s_q[1], m_row, BM, D, BD).to(tl.float32)
        b_qr = (b_qr + _load_vector(r_r_bias + i_n * D, D, BD)[None, :]).to(dtype)
        _write_strip(
            b_qr, r, s_r[1], strip + MARGIN, b_pos, m_row, i_low, i_top, j_base, j_stop - j_base,
            length, table, log2_scale, IN_ORDER, D, BD, BM, BN, WIDTH, STRIDE,
        )  # fmt: skip
        p_k, s_kj = _source(k, s_k[1], k_memory, s_km[1], i_stretch < n_memory, memory)
        p_v, s_vj = _source(v, s_v[1], v_memory, s_vm[1], i_stretch < n_memory, memory)
        tl.debug_barrier()
        for j0 in tl.range(j_base, j_stop, BN, disable_licm=True):
            o_j = j0 + o_bn
            i_key = tl.cast(j0, tl.int64)
            m_in = o_j < j_stop
            if APART:
                m_in = m_in & (o_j >= j_first)
            m_j = m_in
            if key_code is not None:
                # [BN]
                b_code = tl.load(key_code + o_j, mask=m_in, other=PADDED)
                m_j = b_code != PADDED
            m_load = m_in if CLEAN else m_j
            # [BM, BN]
            b_bd = tl.load(strip + (MARGIN + j0 - j_base) + o_tile)
            # [BN, BD]
            b_k = _load_rows(p_k + i_key * s_kj, s_kj, m_load, BN, D, BD)
            b_v = _load_rows(p_v + i_key * s_vj, s_vj, m_load, BN, D, BD)
            if CLEAN:
                b_k = tl.where(m_j[:, None], b_k, _finite_or_zero(b_k))
                b_v = tl.where(m_j[:, None], b_v, _finite_or_zero(b_v))
            # [BM, BN]
            b_s = tl.dot(b_qw, tl.trans(b_k), input_precision="ieee") * log2_scale + b_bd
            if SEGMENTS:
                if CLEAN:
                    b_code = tl.load(segments_k + i_b * keys + o_j, mask=m_in, other=0).to(tl.int32)
                m_differ = b_seg[:, None] != b_code[None, :]
                b_s += tl.where(m_differ, b_c[:, None], 0.0)
            m_seen = _visible(
                m_j[None, :] & m_row[:, None], o_j, b_pos, b_self, rank_q, o_row, rank_k, bits,
                j0, keys, CAUSAL, SAME_LENGTH, BM, BN,
            )  # fmt: skip
            if SEE_SELF:
                m_seen = m_seen & (o_j[None, :] != b_self[:, None])
            b_p = tl.where(m_seen, tl.exp2(b_s - b_lse[:, None]), 0.0)
            if HIDES_ROWS:
                m_even = m_none[:, None] & m_in[None, :]
                b_p = tl.where(m_even, 1.0 / keys, b_p)
                m_seen = m_seen | m_even
            b_dp = tl.dot(b_do, tl.trans(b_v), input_precision="ieee")
            if seed is not None:
                m_keep = _keep_tile(tl.load(seed), o_i, j0, i_bn, keep_from, BM, BN)
                b_dp = tl.where(m_keep, b_dp * keep_scale, 0.0)
            b_dp = tl.where(m_seen, b_dp, 0.0)
            b_exact += tl.sum(b_p * b_dp, axis=1)
            b_norm += tl.sum(b_p, axis=1)
            b_ds = b_p * (b_dp - b_d[:, None])
            if SEGMENTS:
                b_dc += tl.sum(tl.where(m_differ, b_ds, 0.0), axis=1)
                b_pc += tl.sum(tl.where(m_differ, b_p, 0.0), axis=1)
            b_half = b_ds.to(dtype)
            tl.store(d_strip + (j0 - j_base) + o_dtile, b_half)
            b_dqw = tl.dot(b_half, b_k, b_dqw, input_precision="ieee")
        tl.debug_barrier()
        p_dr = dr + (tl.program_id(0) // (splits if ATOMIC else 1)).to(tl.int64) * table * D
        b_shift = tl.where(m_row, i_top - b_pos, 1 << 30)
        o_w = tl.arange(0, BN)
        i_p = j_base + length - i_top
        for w0 in range(0, j_stop - j_base + i_top - i_low, BN):
            o_j = (w0 + o_w)[None, :] - b_shift[:, None]
            # [BM, BN]
            b_ds = tl.load(
                d_strip + tl.arange(0, BM)[:, None] * WIDTH + o_j,
                mask=(o_j >= 0) & (o_j < j_stop - j_base), other=0.0,
            )  # fmt: skip
            o_p = i_p + w0 + o_w
            m_p = (o_p >= 0) & (o_p < table)
            # [BN, BD]
            b_r = _load_rows(r + tl.cast(i_p + w0, tl.int64) * s_r[1], s_r[1], m_p, BN, D, BD)
            b_dqr = tl.dot(b_ds, b_r, b_dqr, input_precision="ieee")
            b_dr = tl.dot(tl.trans(b_ds), b_qr, input_precision="ieee") * scale
            _add_rows(
                p_dr + tl.cast(i_p + w0, tl.int64) * D + (o_w[:, None] * D + o_d[None, :]),
                b_dr, o_p, table, D, BD, ATOMIC,
            )  # fmt: skip
        tl.debug_barrier()  # the strips are free again

    # [BM]
    b_norm = tl.where(m_row, b_norm, 1.0)
    b_exact = tl.where(m_row, b_exact / b_norm, 0.0)
    tl.store(delta + o_stat, b_exact, mask=o_i < rows)
    b_dq = (b_dqw + b_dqr) * scale
    b_q = _load_rows(q, s_q[1], m_row, BM, D, BD).to(tl.float32)
    b_dc = tl.where(m_row, (b_dc + (b_d - b_exact) * b_pc) / b_norm * scale, 0.0)
    if SEGMENTS:
        # Loaded again: kept, it would cost registers in every loop above.
        b_diff = _load_vector(seg_embed + (heads + i_n) * D, D, BD)
        b_diff -= _load_vector(seg_embed + i_n * D, D, BD)
        b_dq += b_dc[:, None] * b_diff[None, :]
    m_dq = (o_i < rows)[:, None] & (o_d < D)[None, :]
    p_dq = dq + i_b * s_dq[0] + i_n * s_dq[2] + i_row * s_dq[1]
    p_dq += tl.arange(0, BM)[:, None] * s_dq[1] + o_d[None, :]
    tl.store(p_dq, tl.where(m_row[:, None], b_dq, 0.0).to(dtype), mask=m_dq)
    # What the biases need, summed in the program's own memory. [1, BD] each
    o_s = tl.arange(0, 1)
    p_sums = sums + tl.program_id(0).to(tl.int64) * 4 * D + (o_s[:, None] * D + o_d[None, :])
    _add_rows(p_sums, tl.sum(b_dqw, axis=0)[None, :] * scale, o_s, 1, D, BD, False)
    _add_rows(p_sums + D, tl.sum(b_dqr, axis=0)[None, :] * scale, o_s, 1, D, BD, False)
    if SEGMENTS:
        b_sum = tl.sum(b_dc[:, None] * b_q, axis=0)[None, :]
        _add_rows(p_sums + 2 * D, b_sum, o_s, 1, D, BD, False)
        b_sum = tl.sum(b_dc, axis=0) + tl.zeros((1, BD), tl.float32)
        _add_rows(p_sums + 3 * D, b_sum, o_s, 1, D, BD, False)
    tl.debug_barrier()


@jit(
    do_not_specialize=[
        "rows_h",
        "rows_g",
        "heads",
        "keys",
        "memory",
        "table",
        "group_size",
        "units",
        "splits",
        "keep_from",
    ]
)
def _backward_q_kernel(
    content, query,  # streams: (q, out, grad of out, dq (B, I, N, D), stats, delta, c (B, N, I)
    #  fp32, positions, segments, rank_q, bits, seed); None where there is none
    strides_h, strides_g,  # of a stream: q, out, grad of out, dq (b, row, n), bits b
    rows_h, rows_g, sources, key_strides, tables, key_vectors,  # as in the forward kernel
    dr,  # fp32 (N, G, splits or 1 if ATOMIC, P, D)
    sums,  # fp32 (programs, 4, D): of dq by content, of dq by position, of dc q, of dc
    strips,  # scratch (programs, 2 strips)
    heads, keys, memory, table, group_size,  # N, J, M, P, B / G
    splits,  # a program has a head, a group of r and one of `splits` parts of their tiles
    scale, log2_scale, keep_from, keep_scale,
    CAUSAL: tl.constexpr, SAME_LENGTH: tl.constexpr, SELF: tl.constexpr, BY_POSITION: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BM_G: tl.constexpr, BN: tl.constexpr,
    WIDTH: tl.constexpr, STRIPS: tl.constexpr, ATOMIC: tl.constexpr,
):  # fmt: skip
    tiles_h = tl.cdiv(rows_h, BM)
    tiles = tiles_h
    if query is not None:
        tiles += tl.cdiv(rows_g, BM_G)
    shared = (sources, key_strides, tables, key_vectors)
    sizes = (heads, keys, memory, table, group_size, scale, log2_scale, keep_scale)
    # This program's unit. Where its memory is, the tiles work out when they need it.
    i_pair = tl.program_id(0) // splits
    i_split = tl.program_id(0) % splits
    groups = tl.num_programs(0) // splits // heads
    work = group_size * tiles
    for i_work in tl.range(
        i_split * work // splits, (i_split + 1) * work // splits, disable_licm=True
    ):
        i_b = i_pair % groups * group_size + i_work // tiles
        i_bn = i_b * heads + i_pair // groups
        i_tile = i_work % tiles
        if query is None:
            _backward_q_tile(
                content, strides_h, rows_h, i_tile, i_bn, dr, sums, strips, splits, shared,
                sizes, keep_from, CAUSAL, SAME_LENGTH, SELF[0], BY_POSITION[0],
                D, BD, BM, BN, WIDTH, STRIPS, ATOMIC,
            )  # fmt: skip
        else:
            if i_tile < tiles_h:
                _backward_q_tile(
                    content, strides_h, rows_h, i_tile, i_bn, dr, sums, strips, splits, shared,
                    sizes, keep_from, CAUSAL, SAME_LENGTH, SELF[0], BY_POSITION[0],
                    D, BD, BM, BN, WIDTH, STRIPS, ATOMIC,
                )  # fmt: skip
            else:
                i_tile -= tiles_h
                _backward_q_tile(
                    query, strides_g, rows_g, i_tile, i_bn, dr, sums, strips, splits, shared,
                    sizes, keep_from, CAUSAL, SAME_LENGTH, SELF[1], BY_POSITION[1],
                    D, BD, BM_G, BN, WIDTH, STRIPS, ATOMIC,
                )  # fmt: skip


@jit()
def _backward_kv_rows(
    stream, strides, rows, b_k, b_v, b_dk, b_dv, b_code, j0, j_first, j_stop,
    r, s_r, tables, key_vectors, strip, i_bn, sizes, keep_from,
    CAUSAL: tl.constexpr, SAME_LENGTH: tl.constexpr, SEE_SELF: tl.constexpr,
    BY_POSITION: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, HEIGHT: tl.constexpr,
):  # fmt: skip
    """Add what one stream's rows give to dk (not yet scaled) and dv of BN keys, [BN, BD] each."""
    q, d_out, stats, delta, c, positions, segments_q, rank_q, bits, seed = stream
    s_q, s_do, s_bits = strides
    heads, keys, memory, table, log2_scale, keep_scale = sizes
    r_w_bias, r_r_bias, _, _ = tables
    _, _, key_padding, rank_k = key_vectors
    SEGMENTS: tl.constexpr = segments_q is not None
    HIDES_ROWS: tl.constexpr = not SEE_SELF and (
        key_padding is not None or rank_q is not None or bits is not None
    )
    IN_ORDER: tl.constexpr = positions is None
    BW: tl.constexpr = BM if BM < BN else BN
    MARGIN: tl.constexpr = BM if IN_ORDER else 0
    STRIDE: tl.constexpr = BN + (BM + BW if IN_ORDER else 0)
    i_b = (i_bn // heads).to(tl.int64)
    i_n = (i_bn % heads).to(tl.int64)
    length = keys - memory
    table_rows = length if BY_POSITION else rows
    if positions is not None:
        positions += i_b * rows
    if rank_q is not None:
        rank_q += i_b * table_rows
        rank_k += i_b * keys
    if bits is not None:
        bits += i_b * s_bits
    # [BN]
    o_j = j0 + tl.arange(0, BN)
    m_in = (o_j >= j_first) & (o_j < j_stop)
    m_j = m_in
    if key_padding is not None:
        m_j = m_j & (tl.load(key_padding + i_b * keys + o_j, mask=m_in, other=1) == 0)
    o_tile = tl.arange(0, BM)[:, None] * STRIDE + tl.arange(0, BN)[None, :]
    # Rows that can see any of these keys.
    i_lo = keys * 0
    i_hi = keys * 0 + rows
    if IN_ORDER and not HIDES_ROWS:
        if CAUSAL:
            i_lo = tl.maximum(j0 - memory, 0)
        if SAME_LENGTH:
            i_hi = tl.minimum(i_hi, j_stop)
        if key_padding is not None:
            i_any = tl.max(m_j.to(tl.int32), axis=0)
            # All padded: only the queries of these very keys see them.
            i_lo = tl.where(i_any > 0, i_lo, tl.maximum(j0 - memory, 0))
            i_hi = tl.where(i_any > 0, i_hi, tl.minimum(i_hi, tl.maximum(j_stop - memory, 0)))
    for i_base in tl.range(i_lo // BM * BM, i_hi, HEIGHT, disable_licm=True):
        i_stop = tl.minimum(i_hi, i_base + HEIGHT)
        for i0 in tl.range(i_base, i_stop, BM, disable_licm=True):
            o_i, m_row, b_pos, i_low, i_top = _row_tile(positions, i0, rows, length, BM)
            # [BM, BD]
            p_q = q + i_b * s_q[0] + i_n * s_q[2] + tl.cast(i0, tl.int64) * s_q[1]
            b_qr = _load_rows(p_q, s_q[1], m_row, BM, D, BD)
            b_qr = b_qr.to(tl.float32) + _load_vector(r_r_bias + i_n * D, D, BD)[None, :]
            _write_strip(
                b_qr.to(b_k.dtype), r, s_r, strip + (i0 - i_base) * STRIDE + MARGIN,
                b_pos, m_row, i_low, i_top, j0, BN, length, table, log2_scale,
                IN_ORDER, D, BD, BM, BW, BN, STRIDE,
            )  # fmt: skip
        tl.debug_barrier()
        for i0 in tl.range(i_base, i_stop, BM, disable_licm=True):
            o_i, m_row, b_pos, i_low, i_top = _row_tile(positions, i0, rows, length, BM)
            b_self = b_pos + memory
            o_row = b_pos if BY_POSITION else tl.minimum(o_i, rows - 1)
            i_row = tl.cast(i0, tl.int64)
            # [BM, BD]
            p_q = q + i_b * s_q[0] + i_n * s_q[2] + i_row * s_q[1]
            b_q = _load_rows(p_q, s_q[1], m_row, BM, D, BD)
            p_do = d_out + i_b * s_do[0] + i_n * s_do[2] + i_row * s_do[1]
            b_do = _load_rows(p_do, s_do[1], m_row, BM, D, BD)
            # [BM]
            o_stat = i_bn.to(tl.int64) * rows
            b_lse = tl.load(stats + o_stat + o_i, mask=m_row, other=float("inf"))
            b_d = tl.load(delta + o_stat + o_i, mask=m_row, other=0.0)
            # [BM, BN]
            b_bd = tl.load(strip + ((i0 - i_base) * STRIDE + MARGIN) + o_tile)
            b_qw = b_q.to(tl.float32) + _load_vector(r_w_bias + i_n * D, D, BD)[None, :]
            b_qw = b_qw.to(b_k.dtype)
            b_s = tl.dot(b_qw, tl.trans(b_k), input_precision="ieee") * log2_scale + b_bd
            if SEGMENTS:
                b_c = tl.load(c + o_stat + o_i, mask=m_row, other=0.0)
                b_seg = tl.load(segments_q + i_b * table_rows + o_row).to(tl.int32)
                b_s += tl.where(b_seg[:, None] != b_code[None, :], b_c[:, None], 0.0)
            m_seen = _visible(
                m_j[None, :], o_j, b_pos, b_self, rank_q, o_row, rank_k, bits, j0, keys,
                CAUSAL, SAME_LENGTH, BM, BN,
            )  # fmt: skip
            if SEE_SELF:
                m_seen = m_seen | ((o_j[None, :] == b_self[:, None]) & m_in[None, :])
            m_seen = m_seen & m_row[:, None]
            b_p = tl.where(m_seen, tl.exp2(b_s - b_lse[:, None]), 0.0)
            if HIDES_ROWS:
                m_none = m_row & (b_lse == float("inf"))
                m_even = m_none[:, None] & m_in[None, :]
                b_p = tl.where(m_even, 1.0 / keys, b_p)
                m_seen = m_seen | m_even
            b_dp = tl.dot(b_do, tl.trans(b_v), input_precision="ieee")
            b_kept = b_p
            if seed is not None:
                m_keep = _keep_tile(tl.load(seed), o_i, j0, i_bn, keep_from, BM, BN)
                b_dp = tl.where(m_keep, b_dp * keep_scale, 0.0)
                b_kept = tl.where(m_keep, b_p * keep_scale, 0.0)
            b_dv = tl.dot(tl.trans(b_kept.to(b_k.dtype)), b_do, b_dv, input_precision="ieee")
            b_ds = tl.where(m_seen, b_p * (b_dp - b_d[:, None]), 0.0)
            b_dk = tl.dot(tl.trans(b_ds.to(b_k.dtype)), b_qw, b_dk, input_precision="ieee")
        tl.debug_barrier()  # the strip is free again
    return b_dk, b_dv


@jit(
    do_not_specialize=[
        "rows_h",
        "rows_g",
        "batch",
        "heads",
        "keys",
        "memory",
        "table",
        "group_size",
        "keep_from",
    ]
)
def _backward_kv_kernel(
    content, query,  # streams: (q, grad of out (B, I, N, D), stats, delta, c (B, N, I) fp32,
    #  positions, segments, rank_q, bits, seed); None where there is none
    strides_h, strides_g,  # of a stream: q, grad of out (b, row, n), bits b
    rows_h, rows_g, sources, key_strides, tables, key_vectors,  # as in the forward kernel
    grads,  # dk, dv, dk_memory, dv_memory like k, v, k_memory, v_memory; the last two may be None
    grad_strides,  # of each of them: (b, row, n)
    strips,  # scratch (programs, strip)
    batch, heads, keys, memory, table, group_size,  # B, N, J, M, P, B / G
    scale, log2_scale, keep_from, keep_scale,
    CAUSAL: tl.constexpr, SAME_LENGTH: tl.constexpr, SELF: tl.constexpr, BY_POSITION: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BM_G: tl.constexpr, BN: tl.constexpr,
    HEIGHT: tl.constexpr,
):  # fmt: skip
    k, v, k_memory, v_memory, r = sources
    s_k, s_v, s_km, s_vm, s_r = key_strides
    dk, dv, dk_memory, dv_memory = grads
    s_dk, s_dv, s_dkm, s_dvm = grad_strides
    _, segments_k, key_padding, _ = key_vectors
    APART: tl.constexpr = k_memory is not None
    o_d = tl.arange(0, BD)
    n_memory, tiles = _stretches(keys * 0, keys, memory, APART, BN, BN)
    sizes = (heads, keys, memory, table, log2_scale, keep_scale)
    strip = strips + tl.program_id(0).to(tl.int64) * (HEIGHT * (BN + 2 * BM))
    for i_work in tl.range(
        tl.program_id(0), batch * heads * tiles, tl.num_programs(0), disable_licm=True
    ):
        i_bn = i_work // tiles
        i_tile = i_work % tiles
        j0, j_first, j_stop = _stretch(i_tile, n_memory, keys * 0, keys, memory, APART, BN, BN)
        i_b = (i_bn // heads).to(tl.int64)
        i_n = (i_bn % heads).to(tl.int64)
        in_memory = i_tile < n_memory
        i_key = tl.cast(j0, tl.int64)
        o_j = j0 + tl.arange(0, BN)
        m_in = (o_j >= j_first) & (o_j < j_stop)
        p_k, s_kj = _source(
            k + i_b * s_k[0] + i_n * s_k[2], s_k[1],
            None if k_memory is None else k_memory + i_b * s_km[0] + i_n * s_km[2], s_km[1],
            in_memory, memory,
        )  # fmt: skip
        p_v, s_vj = _source(
            v + i_b * s_v[0] + i_n * s_v[2], s_v[1],
            None if v_memory is None else v_memory + i_b * s_vm[0] + i_n * s_vm[2], s_vm[1],
            in_memory, memory,
        )  # fmt: skip
        # [BN, BD]
        b_k = _load_rows(p_k + i_key * s_kj, s_kj, m_in, BN, D, BD)
        b_v = _load_rows(p_v + i_key * s_vj, s_vj, m_in, BN, D, BD)
        if key_padding is not None:
            m_pad = tl.load(key_padding + i_b * keys + o_j, mask=m_in, other=0) != 0
            b_k = tl.where(m_pad[:, None], _finite_or_zero(b_k), b_k)
            b_v = tl.where(m_pad[:, None], _finite_or_zero(b_v), b_v)
        b_code = o_j
        if segments_k is not None:
            b_code = tl.load(segments_k + i_b * keys + o_j, mask=m_in, other=0).to(tl.int32)
        b_dk = tl.zeros((BN, BD), tl.float32)
        b_dv = tl.zeros((BN, BD), tl.float32)
        p_r = r + i_b // group_size * s_r[0] + i_n * s_r[2]
        b_dk, b_dv = _backward_kv_rows(
            content, strides_h, rows_h, b_k, b_v, b_dk, b_dv, b_code, j0, j_first, j_stop,
            p_r, s_r[1], tables, key_vectors, strip, i_bn, sizes, keep_from,
            CAUSAL, SAME_LENGTH, SELF[0], BY_POSITION[0], D, BD, BM, BN, HEIGHT,
        )  # fmt: skip
        if query is not None:
            b_dk, b_dv = _backward_kv_rows(
                query, strides_g, rows_g, b_k, b_v, b_dk, b_dv, b_code, j0, j_first, j_stop,
                p_r, s_r[1], tables, key_vectors, strip, i_bn, sizes, keep_from,
                CAUSAL, SAME_LENGTH, SELF[1], BY_POSITION[1], D, BD, BM_G, BN, HEIGHT,
            )  # fmt: skip
        p_dk, s_dkj = _source(
            dk + i_b * s_dk[0] + i_n * s_dk[2], s_dk[1],
            None if dk_memory is None else dk_memory + i_b * s_dkm[0] + i_n * s_dkm[2], s_dkm[1],
            in_memory, memory,
        )  # fmt: skip
        p_dv, s_dvj = _source(
            dv + i_b * s_dv[0] + i_n * s_dv[2], s_dv[1],
            None if dv_memory is None else dv_memory + i_b * s_dvm[0] + i_n * s_dvm[2], s_dvm[1],
            in_memory, memory,
        )  # fmt: skip
        if key_padding is not None:
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


def rel_attention_backward(
    keys: Keys,
    streams: Sequence[Queries],
    outs: Sequence[Tensor],
    stats: Sequence[Tensor],
    grad_outs: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    deterministic: bool,
) -> None:
    """Fill `grads`; the formulas are in the module's docstring.

    Args:
        keys, streams, outs, stats: of the forward call.
        grad_outs: (B, I, N, D) per stream, any strides.
        grads: of each stream's q, then of k, v, k_memory, v_memory, r, r_w_bias, r_r_bias,
            r_s_bias and seg_embed; None where there is no such operand or no interest.
        deterministic: the same inputs give the same bits on the same GPU. Otherwise the parts of
            dr are added in the order in which they are ready.

    Raises:
        BackendUnavailable: Triton or a CUDA device is missing.
        ArgumentError, ShapeError: what the kernels do not take.
    """
    call = Call(keys, streams)
    wanted = list(grads)
    d_streams, of_keys = wanted[: len(streams)], wanted[len(streams) :]
    if call.is_empty:
        for grad in wanted:
            if grad is not None:
                grad.zero_()
        return
    deltas = [torch.empty_like(x) for x in stats]
    c = [None if keys.segments is None else torch.empty_like(x) for x in stats]
    with device_guard(streams[0].q):
        _launch_q(call, outs, stats, deltas, c, grad_outs, d_streams, of_keys[4:], deterministic)
        _launch_kv(call, stats, deltas, c, grad_outs, of_keys[:4])


def _launch_q(
    call: Call, outs: Sequence[Tensor], stats: Sequence[Tensor], deltas: Sequence[Tensor],
    c: Sequence[Tensor | None], grad_outs: Sequence[Tensor], d_streams: Sequence[Tensor | None],
    d_tables: Sequence[Tensor | None], deterministic: bool,
) -> None:  # fmt: skip
    """dq of every stream, dr, the biases' gradients; also `deltas` and `c` for `_launch_kv`."""
    keys, heads, groups = call.keys, call.heads, call.keys.r.shape[0]
    config = call.config("backward_q")
    work = call.row_tiles(config) // (heads * groups)
    splits = max(1, min(work, call.programs(config) // (heads * groups)))
    programs = heads * groups * splits
    strips = call.strip_elements(config) + config.block_m * call.width
    scratch = call.scratch(programs, strips)
    targets = [
        call.target(torch.empty_like(stream.q) if dq is None else dq)
        for stream, dq in zip(call.streams, d_streams, strict=True)
    ]
    tensors, strides = call.streams_with(
        [call.tiles(x) for x in outs], [call.tiles(x) for x in grad_outs], targets, stats, deltas, c
    )
    table, copies = keys.r.shape[1], splits if deterministic else 1
    fp32 = partial(torch.zeros, dtype=torch.float32, device=call.device)
    dr = fp32((heads, groups, copies, table, call.padded_d))
    sums = fp32((heads, groups * splits, 4, call.padded_d))
    _backward_q_kernel[(programs,)](
        *tensors, *strides, *call.rows, call.sources, call.key_strides, call.tables,
        call.key_vectors, dr, sums, scratch, *call.sizes[1:], splits, keys.scale,
        call.log2_scale, call.keep_from, call.keep_scale, **call.flags, **call.shape(config),
        WIDTH=call.width, STRIPS=strips, ATOMIC=not deterministic, **config.options,
    )  # fmt: skip
    for dq, target in zip(d_streams, targets, strict=True):
        if dq is not None:
            call.write_back(dq, target)
    d_r, d_w_bias, d_r_bias, d_s_bias, d_embed = d_tables
    dim = call.head_dim
    if d_r is not None:
        d_r.copy_(dr.sum(2).permute(1, 2, 0, 3)[..., :dim])
    by_content, by_position, dc_q, dc = (sums.sum(1)[..., :dim]).unbind(1)  # (N, D) each
    if d_w_bias is not None:
        d_w_bias.copy_(by_content)
    if d_r_bias is not None:
        d_r_bias.copy_(by_position)
    if keys.seg_embed is None or keys.r_s_bias is None:
        return
    if d_s_bias is not None:
        d_s_bias.copy_(dc * (keys.seg_embed[1].float() - keys.seg_embed[0].float()))
    if d_embed is not None:
        difference = dc_q + dc * keys.r_s_bias.float()
        d_embed[1].copy_(difference)
        d_embed[0].copy_(-difference)


def _launch_kv(
    call: Call, stats: Sequence[Tensor], deltas: Sequence[Tensor], c: Sequence[Tensor | None],
    grad_outs: Sequence[Tensor], of_keys: Sequence[Tensor | None],
) -> None:  # fmt: skip
    """dk and dv, and those of the memory."""
    if all(grad is None for grad in of_keys):
        return
    keys = call.keys
    config = call.config("backward_kv")
    likes = (keys.k, keys.v, keys.k_memory, keys.v_memory)
    targets = [
        None if like is None else call.target(torch.empty_like(like) if grad is None else grad)
        for like, grad in zip(likes, of_keys, strict=True)
    ]
    tiles = -(-keys.count // config.block_n) + (keys.k_memory is not None)
    programs = min(call.batch * call.heads * tiles, call.programs(config))
    strips = call.scratch(programs, call.width * (config.block_n + 2 * config.block_m))
    d_outs = [call.tiles(x) for x in grad_outs]
    tensors, strides = call.streams_with(d_outs, stats, deltas, c)
    _backward_kv_kernel[(programs,)](
        *tensors, *strides, *call.rows, call.sources, call.key_strides, call.tables,
        call.key_vectors, tuple(targets), tuple(call.strides(x) for x in targets), strips,
        *call.sizes, keys.scale, call.log2_scale, call.keep_from, call.keep_scale, **call.flags,
        **call.shape(config), HEIGHT=call.width, **config.options,
    )  # fmt: skip
    for grad, target in zip(of_keys, targets, strict=True):
        if grad is not None and target is not None:
            call.write_back(grad, target)
