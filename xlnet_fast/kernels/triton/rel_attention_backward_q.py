"""Backward kernel of relative attention that owns rows: dq, dr and the biases' sums.

Letters and formulas as in `rel_attention_backward.py`. Per stretch of keys a program

    1. writes the strip of position scores, as the forward kernel does;
    2. goes over the keys: P again from the statistics, dP, dS, dq += dS k; dS to a second strip;
    3. goes over the stretch's rows of r and reads dS shifted back: dq += dS r, dr += dS^T q.

That is 6 matrix products a tile. A program takes one unit after the other, a part of the tiles of
one head and one group of r. It adds to dr atomically, or, where the same bits are wanted every
time, into the unit's own copy of dr.

D_i is first taken as dO_i . O_i. O is rounded to half precision, so the exact sum is kept as well:
it corrects dc, whose bias gradient has one free number a head, and serves the kernel that owns
keys. P's statistics are rounded too: the sum of P mends what is linear in a row of P, here and
there.
"""

from __future__ import annotations

from xlnet_fast.kernels.triton import jit, tl
from xlnet_fast.kernels.triton.rel_attention_arguments import Shared
from xlnet_fast.kernels.triton.rel_attention_pointers import (
    _batch_and_head,
    _keys_of_head,
)
from xlnet_fast.kernels.triton.tile_ops import (
    PADDED,
    SIZES,
    _finite_or_zero,
    _keep_one,
    _keep_tile,
    _keys_in_window,
    _load_rows,
    _load_vector,
    _row_tile,
    _segment_difference,
    _self_key,
    _source,
    _stretch,
    _stretches,
    _unpadded_range,
    _visible,
    _write_strip,
)

GEMM_UNITS = 6.0


@jit()
def _add_rows(
    p_rows, b_x, o_p, r_stop, START: tl.constexpr, D: tl.constexpr, BD: tl.constexpr,
    ATOMIC: tl.constexpr,
):  # fmt: skip
    """Add b_x [BW, BD] to rows START .. r_stop - 1 of fp32, nobody else's if not ATOMIC."""
    o_d = tl.arange(0, BD)
    m_x = ((o_p >= START) & (o_p < r_stop))[:, None] & (o_d < D)[None, :]
    if ATOMIC:
        tl.atomic_add(p_rows, b_x, mask=m_x, sem="relaxed")
    else:
        b_sum = tl.load(p_rows, mask=m_x, other=0.0) + b_x
        if b_x.shape[0] == 1:
            # A row is too little for all warps: each loads it, and one stores.
            tl.debug_barrier()
        tl.store(p_rows, b_sum, mask=m_x)


@jit()
def _backward_q_tile(
    stream, strides, rows, i_tile, i_bn, i_unit,  # this and what follows: of `_backward_q_kernel`
    dr, sums, strips, d_strips, splits, scale, shared,
    CAUSAL: tl.constexpr, SAME_LENGTH: tl.constexpr, SEE_SELF: tl.constexpr,
    BY_POSITION: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, WIDTH: tl.constexpr, STRIP: tl.constexpr, D_STRIP: tl.constexpr,
    START: tl.constexpr, ATOMIC: tl.constexpr,
):  # fmt: skip
    """dq of BM rows, and their part of dr and of the sums that the biases need."""
    keys, memory, window, heads = shared.keys, shared.memory, shared.window, shared.heads
    log2_scale, biases, seed = shared.log2_scale, shared.biases, stream.seed
    keep_from, keep_scale = shared.keep_from, shared.keep_scale
    vectors = shared.key_vectors
    SEGMENTS: tl.constexpr = stream.segments is not None
    # Whether a row may see no key.
    FULLY_MASKED: tl.constexpr = not SEE_SELF and (
        vectors.padding is not None or stream.rank_q is not None or stream.bits is not None
    )
    # Rows that see no key have gradients to padded keys too.
    CLEAN: tl.constexpr = FULLY_MASKED and vectors.padding is not None
    APART: tl.constexpr = shared.key_tensors.k_memory is not None
    IN_ORDER: tl.constexpr = stream.positions is None
    MARGIN: tl.constexpr = BM if IN_ORDER else 0
    STRIDE: tl.constexpr = WIDTH + (BM + BN if IN_ORDER else 0)
    strip = strips + tl.program_id(0).to(tl.int64) * STRIP
    d_strip = d_strips + tl.program_id(0).to(tl.int64) * D_STRIP
    i_b, i_n = _batch_and_head(i_bn, heads)
    length = keys - memory
    vector_rows = length if BY_POSITION else rows
    i_row = tl.cast(i_tile * BM, tl.int64)
    s_q, s_out, s_do, s_dq, s_key = (
        strides.q, strides.out, strides.d_out, strides.dq, shared.key_strides
    )  # fmt: skip
    q = stream.q + (i_b * s_q[0] + i_n * s_q[2] + i_row * s_q[1])
    out = stream.out + (i_b * s_out[0] + i_n * s_out[2] + i_row * s_out[1])
    d_out = stream.d_out + (i_b * s_do[0] + i_n * s_do[2] + i_row * s_do[1])
    tensors, r_stop = _keys_of_head(shared, i_b, i_n, START)
    positions = None if stream.positions is None else stream.positions + i_b * rows
    padding = None if vectors.padding is None else vectors.padding + i_b * keys
    code = None if vectors.code is None else vectors.code + i_b * keys
    rank_k = None if vectors.rank_k is None else vectors.rank_k + i_b * keys

    o_bn = tl.arange(0, BN)
    o_d = tl.arange(0, BD)
    o_tile = tl.arange(0, BM)[:, None] * STRIDE + o_bn[None, :]
    o_dtile = tl.arange(0, BM)[:, None] * WIDTH + o_bn[None, :]
    o_i, m_row, b_pos, i_low, i_top = _row_tile(positions, i_tile * BM, rows, length, BM)
    b_self = b_pos + memory
    o_row = b_pos if BY_POSITION else tl.minimum(o_i, rows - 1)
    rank_q = None if stream.rank_q is None else stream.rank_q + i_b * vector_rows
    bits = None if stream.bits is None else stream.bits + i_b * strides.bits
    # [BM, BD]
    b_q = _load_rows(q, s_q[1], m_row, BM, D, BD)
    dtype = b_q.dtype
    b_do = _load_rows(d_out, s_do[1], m_row, BM, D, BD)
    b_o = _load_rows(out, s_out[1], m_row, BM, D, BD)
    # [BM]
    b_delta = tl.sum(b_do.to(tl.float32) * b_o.to(tl.float32), axis=1)
    o_stat = i_bn.to(tl.int64) * rows + o_i
    b_lse = tl.load(stream.lse + o_stat, mask=m_row, other=float("inf"))
    m_all_masked = m_row & (b_lse == float("inf"))
    # [BM, BD]
    b_qw = (b_q.to(tl.float32) + _load_vector(biases.r_w_bias + i_n * D, D, BD)[None, :]).to(dtype)
    b_qr = (b_q.to(tl.float32) + _load_vector(biases.r_r_bias + i_n * D, D, BD)[None, :]).to(dtype)
    b_dc = tl.zeros((BM,), tl.float32)  # sum of dS over keys of another segment
    b_pc = tl.zeros((BM,), tl.float32)  # the same sum of P
    b_exact = tl.zeros((BM,), tl.float32)  # sum of P dP
    b_norm = tl.zeros((BM,), tl.float32)  # sum of P: one, but for roundings of the statistics
    if SEGMENTS:
        # [BD], [BM]
        b_diff = _segment_difference(biases.seg_embed, heads, i_n, D, BD)
        b_rs = _load_vector(biases.r_s_bias + i_n * D, D, BD)
        b_c = tl.sum((b_q.to(tl.float32) + b_rs[None, :]) * b_diff[None, :], axis=1) * log2_scale
        b_seg = tl.load(stream.segments + i_b * vector_rows + o_row).to(tl.int32)
        tl.store(stream.c + o_stat, b_c, mask=o_i < rows)

    i_lo = keys * 0
    i_hi = keys
    if padding is not None:
        i_lo, i_hi = _unpadded_range(padding, keys, 1024)
    if CAUSAL:
        i_hi = tl.minimum(i_hi, i_top + memory + 1)
    if SAME_LENGTH:
        i_lo = tl.maximum(i_lo, i_low)
    if window[0] is not None:
        i_lo, i_hi = _keys_in_window(i_lo, i_hi, i_low, i_top, memory, window)
    if FULLY_MASKED:
        i_any = tl.max(m_all_masked.to(tl.int32), axis=0)
        i_lo = tl.where(i_any > 0, 0, i_lo)
        i_hi = tl.where(i_any > 0, keys, i_hi)

    b_dqw = tl.zeros((BM, BD), tl.float32)
    b_dqr = tl.zeros((BM, BD), tl.float32)
    if SEE_SELF:
        b_k_self, b_v_self = _self_key(tensors, s_key, padding, b_self, m_row, memory, APART, D, BD)
        b_r_self = _load_vector(tensors.r + keys.to(tl.int64) * s_key.r[1], D, BD)
        b_s_self = tl.sum(b_qw.to(tl.float32) * b_k_self.to(tl.float32), axis=1) * log2_scale
        b_s_self += tl.sum(b_qr.to(tl.float32) * b_r_self[None, :], axis=1) * log2_scale
        if SEGMENTS:
            b_seg_self = tl.load(vectors.segments + i_b * keys + b_self).to(tl.int32)
            b_s_self += tl.where(b_seg != b_seg_self, b_c, 0.0)
        b_p_self = tl.exp2(b_s_self - b_lse)
        b_dp_self = tl.sum(b_do.to(tl.float32) * b_v_self.to(tl.float32), axis=1)
        if seed is not None:
            m_keep_self = _keep_one(tl.load(seed), o_i, b_self, i_bn, keep_from)
            b_dp_self = tl.where(m_keep_self, b_dp_self * keep_scale, 0.0)
        b_ds_self = tl.where(m_row, b_p_self * (b_dp_self - b_delta), 0.0)
        b_exact += b_p_self * b_dp_self
        b_norm += b_p_self
        if SEGMENTS:
            b_dc += tl.where(b_seg != b_seg_self, b_ds_self, 0.0)
            b_pc += tl.where(b_seg != b_seg_self, b_p_self, 0.0)
        b_dqw = b_ds_self[:, None] * b_k_self.to(tl.float32)
        b_dqr = b_ds_self[:, None] * b_r_self[None, :]
        # [1, BD]: a query and its own key meet at row J of r
        b_dr_self = tl.sum(b_ds_self[:, None] * b_qr.to(tl.float32), axis=0)[None, :] * scale
        o_1 = tl.full((1,), 0, tl.int32) + keys
        p_dr = tl.cast(i_unit // (splits if ATOMIC else 1), tl.int64) * shared.r_rows - START
        p_dr = dr + p_dr * D
        p_dr_self = p_dr + (o_1[:, None] * D + o_d[None, :])
        _add_rows(p_dr_self, b_dr_self, o_1, r_stop, START, D, BD, ATOMIC)

    n_memory, n_stretches = _stretches(i_lo, i_hi, memory, APART, BN, WIDTH)
    for i_stretch in tl.range(0, n_stretches, disable_licm=True):
        j_base, j_first, j_stop = _stretch(
            i_stretch, n_memory, i_lo, i_hi, memory, APART, BN, WIDTH
        )
        # [BM, BD]
        b_qr = _load_rows(q, s_q[1], m_row, BM, D, BD).to(tl.float32)
        b_qr = (b_qr + _load_vector(biases.r_r_bias + i_n * D, D, BD)[None, :]).to(dtype)
        _write_strip(
            b_qr, tensors.r, s_key.r[1], strip + MARGIN, b_pos, m_row, i_low, i_top, j_base,
            j_stop - j_base, length, r_stop, log2_scale, IN_ORDER, D, BD, BM, BN, WIDTH, STRIDE,
            START,
        )  # fmt: skip
        in_memory = i_stretch < n_memory
        p_k, s_kj = _source(
            tensors.k, s_key.k[1], tensors.k_memory, s_key.k_memory[1], in_memory, memory, APART
        )
        p_v, s_vj = _source(
            tensors.v, s_key.v[1], tensors.v_memory, s_key.v_memory[1], in_memory, memory, APART
        )
        tl.debug_barrier()
        for j0 in tl.range(j_base, j_stop, BN, disable_licm=True):
            o_j = j0 + o_bn
            i_key = tl.cast(j0, tl.int64)
            m_in = o_j < j_stop
            if APART:
                m_in = m_in & (o_j >= j_first)
            m_j = m_in
            if code is not None:
                # [BN]
                b_code = tl.load(code + o_j, mask=m_in, other=PADDED)
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
                    p_segments = vectors.segments + i_b * keys
                    b_code = tl.load(p_segments + o_j, mask=m_in, other=0).to(tl.int32)
                m_differ = b_seg[:, None] != b_code[None, :]
                b_s += tl.where(m_differ, b_c[:, None], 0.0)
            m_seen = _visible(
                m_j[None, :] & m_row[:, None], o_j, b_pos, b_self, rank_q, o_row, rank_k, bits,
                j0, keys, window, CAUSAL, SAME_LENGTH, BM, BN,
            )  # fmt: skip
            if SEE_SELF:
                m_seen = m_seen & (o_j[None, :] != b_self[:, None])
            b_p = tl.where(m_seen, tl.exp2(b_s - b_lse[:, None]), 0.0)
            if FULLY_MASKED:
                m_uniform = m_all_masked[:, None] & m_in[None, :]
                b_p = tl.where(m_uniform, 1.0 / keys, b_p)
                m_seen = m_seen | m_uniform
            b_dp = tl.dot(b_do, tl.trans(b_v), input_precision="ieee")
            if seed is not None:
                m_keep = _keep_tile(tl.load(seed), o_i, j0, i_bn, keep_from, BM, BN)
                b_dp = tl.where(m_keep, b_dp * keep_scale, 0.0)
            b_dp = tl.where(m_seen, b_dp, 0.0)
            b_exact += tl.sum(b_p * b_dp, axis=1)
            b_norm += tl.sum(b_p, axis=1)
            b_ds = b_p * (b_dp - b_delta[:, None])
            if SEGMENTS:
                b_dc += tl.sum(tl.where(m_differ, b_ds, 0.0), axis=1)
                b_pc += tl.sum(tl.where(m_differ, b_p, 0.0), axis=1)
            b_half = b_ds.to(dtype)
            tl.store(d_strip + (j0 - j_base) + o_dtile, b_half)
            b_dqw = tl.dot(b_half, b_k, b_dqw, input_precision="ieee")
        tl.debug_barrier()
        p_dr = tl.cast(i_unit // (splits if ATOMIC else 1), tl.int64) * shared.r_rows - START
        p_dr = dr + p_dr * D
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
            m_p = (o_p >= START) & (o_p < r_stop)
            # [BN, BD]
            b_r = _load_rows(
                tensors.r + tl.cast(i_p + w0, tl.int64) * s_key.r[1], s_key.r[1], m_p, BN, D, BD
            )
            b_dqr = tl.dot(b_ds, b_r, b_dqr, input_precision="ieee")
            b_dr = tl.dot(tl.trans(b_ds), b_qr, input_precision="ieee") * scale
            _add_rows(
                p_dr + tl.cast(i_p + w0, tl.int64) * D + (o_w[:, None] * D + o_d[None, :]),
                b_dr, o_p, r_stop, START, D, BD, ATOMIC,
            )  # fmt: skip
        tl.debug_barrier()  # the strips are free again

    # [BM]
    b_norm = tl.where(m_row, 1.0 / b_norm, 1.0)
    b_exact = tl.where(m_row, b_exact * b_norm, 0.0)
    tl.store(stream.delta + o_stat, b_exact, mask=o_i < rows)
    tl.store(stream.norm + o_stat, b_norm, mask=o_i < rows)
    b_dqw *= b_norm[:, None]
    b_dqr *= b_norm[:, None]
    b_dq = (b_dqw + b_dqr) * scale
    b_q = _load_rows(q, s_q[1], m_row, BM, D, BD).to(tl.float32)
    b_dc = tl.where(m_row, (b_dc + (b_delta - b_exact) * b_pc) * b_norm * scale, 0.0)
    if SEGMENTS:
        # Loaded again: kept, it would cost registers in every loop above.
        b_diff = _segment_difference(biases.seg_embed, heads, i_n, D, BD)
        b_dq += b_dc[:, None] * b_diff[None, :]
    m_dq = (o_i < rows)[:, None] & (o_d < D)[None, :]
    p_dq = stream.dq + i_b * s_dq[0] + i_n * s_dq[2] + i_row * s_dq[1]
    p_dq += tl.arange(0, BM)[:, None] * s_dq[1] + o_d[None, :]
    tl.store(p_dq, tl.where(m_row[:, None], b_dq, 0.0).to(dtype), mask=m_dq)
    # What the biases need, summed in the program's own memory. [1, BD] each
    o_s = tl.arange(0, 1)
    p_sums = sums + tl.cast(i_unit, tl.int64) * 4 * D + (o_s[:, None] * D + o_d[None, :])
    _add_rows(p_sums, tl.sum(b_dqw, axis=0)[None, :] * scale, o_s, 1, 0, D, BD, False)
    _add_rows(p_sums + D, tl.sum(b_dqr, axis=0)[None, :] * scale, o_s, 1, 0, D, BD, False)
    if SEGMENTS:
        b_sum = tl.sum(b_dc[:, None] * b_q, axis=0)[None, :]
        _add_rows(p_sums + 2 * D, b_sum, o_s, 1, 0, D, BD, False)
        b_sum = tl.sum(b_dc, axis=0) + tl.zeros((1, BD), tl.float32)
        _add_rows(p_sums + 3 * D, b_sum, o_s, 1, 0, D, BD, False)
    tl.debug_barrier()


@jit(do_not_specialize=[*SIZES, "groups", "splits"])
def _backward_q_kernel(
    content, query,  # `BackwardQStream`; query None where there is one stream
    strides_h, strides_g,  # `BackwardQStrides`
    rows_h, rows_g, key_tensors, key_strides, biases, key_vectors,  # as in the forward kernel
    dr,  # fp32 (N, G, splits or 1 if ATOMIC, P, D)
    sums,  # fp32 (units, 4, D): of dq by content, of dq by position, of dc q, of dc
    strips, d_strips,  # scratch (programs, STRIP) of scores, (programs, D_STRIP) of dS
    heads, keys, memory,  # N, J, M
    left, ahead, chunk,  # `launch.window`
    r_rows, group_size,  # P, B / G
    groups, splits,  # a unit is a head, a group of r and one of `splits` parts of their tiles
    scale, log2_scale, keep_from, keep_scale,
    CAUSAL: tl.constexpr, SAME_LENGTH: tl.constexpr, SELF: tl.constexpr, BY_POSITION: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BM_G: tl.constexpr, BN: tl.constexpr,
    WIDTH: tl.constexpr, STRIP: tl.constexpr, D_STRIP: tl.constexpr, START: tl.constexpr,
    ATOMIC: tl.constexpr,
):  # fmt: skip
    tiles_h = tl.cdiv(rows_h, BM)
    tiles = tiles_h
    if query is not None:
        tiles += tl.cdiv(rows_g, BM_G)
    shared = Shared(
        key_tensors=key_tensors, key_strides=key_strides, biases=biases, key_vectors=key_vectors,
        heads=heads, keys=keys, memory=memory, window=(left, ahead, chunk), r_rows=r_rows,
        group_size=group_size, log2_scale=log2_scale, keep_from=keep_from, keep_scale=keep_scale,
    )  # fmt: skip
    work = group_size * tiles
    for i_unit in tl.range(
        tl.program_id(0), heads * groups * splits, tl.num_programs(0), disable_licm=True
    ):
        # Where this unit's memory is, the tiles work out when they need it.
        i_pair = i_unit // splits
        i_split = i_unit % splits
        for i_work in tl.range(
            i_split * work // splits, (i_split + 1) * work // splits, disable_licm=True
        ):
            i_b = i_pair % groups * group_size + i_work // tiles
            i_bn = i_b * heads + i_pair // groups
            i_tile = i_work % tiles
            if query is None:
                _backward_q_tile(
                    content, strides_h, rows_h, i_tile, i_bn, i_unit, dr, sums, strips, d_strips,
                    splits, scale, shared, CAUSAL, SAME_LENGTH, SELF[0], BY_POSITION[0],
                    D, BD, BM, BN, WIDTH, STRIP, D_STRIP, START, ATOMIC,
                )  # fmt: skip
            else:
                if i_tile < tiles_h:
                    _backward_q_tile(
                        content, strides_h, rows_h, i_tile, i_bn, i_unit, dr, sums, strips,
                        d_strips, splits, scale, shared, CAUSAL, SAME_LENGTH, SELF[0],
                        BY_POSITION[0], D, BD, BM, BN, WIDTH, STRIP, D_STRIP, START, ATOMIC,
                    )  # fmt: skip
                else:
                    i_tile -= tiles_h
                    _backward_q_tile(
                        query, strides_g, rows_g, i_tile, i_bn, i_unit, dr, sums, strips,
                        d_strips, splits, scale, shared, CAUSAL, SAME_LENGTH, SELF[1],
                        BY_POSITION[1], D, BD, BM_G, BN, WIDTH, STRIP, D_STRIP, START, ATOMIC,
                    )  # fmt: skip
