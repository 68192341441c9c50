"""Relative attention forward, fused: one launch for both streams, no score outside of a tile.

Letters: b batch, n head, i query row, j key, d head dim, p row of r; B, N, I, J, D, P their counts;
M memory length, L = J - M keys of the current segment; pos_i the position of row i in 0..L-1.

    s[i,j] = scale * ( (q_i + r_w_bias) . k_j + (q_i + r_r_bias) . r_{j - pos_i + L}
                       + [seg_i != seg_j] c_i )
    c_i    = (q_i + r_s_bias) . (seg_embed_1 - seg_embed_0)                                 fp32
    out_i  = sum_j softmax(s)_ij v_j                       online softmax, statistics in fp32

A program takes one tile of rows after the other. Per stretch of keys it goes over the position
scores first and over the keys second:

    1. every row of r that the tile meets is multiplied with all rows of q, and row a writes its
       products, shifted by its own position, into the program's strip of scratch memory;
    2. after a barrier: flash attention that adds an aligned tile of the strip to its scores.

So the shift is an address, each product is made once (3 matrix products a tile, content-only
attention has 2), rows may sit at any position, and the strip, a few hundred kilobytes a program,
stays in the cache. docs/maths.md tells why not a gather between registers.

Hidden keys never enter the running sums. A row that sees no key is uniform over all J keys, as
HF's -1e30 makes it; such rows are recomputed after the main loop, by the few tiles that have any,
and have the statistic +inf. So the main loop may skip whole stretches of hidden keys, and it never
loads k and v of keys hidden by `key_padding`. With `see_self` the row's own key is the start value
of the online softmax and the loop leaves it out. What follows from it for NaN and inf:
  - in k and v of keys that `key_padding` hides they count as 0 and reach nothing;
  - in k of keys hidden by other parts they reach nothing; in v of such keys they spread to every
    row (0 * NaN), as in any masked product.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from xlnet_fast.kernels.triton import jit, tl
from xlnet_fast.kernels.triton.compiling import run_kernel
from xlnet_fast.kernels.triton.launch import Call, device_guard
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
from xlnet_fast.operands import Keys, Queries

GEMM_UNITS = 3.0
"""Matrix products per score tile; content-only flash attention has 2. A stretch of keys adds the
rows of r that only its edge meets: BM / WIDTH of one product."""


@jit()
def _forward_tile(
    stream, strides, rows, i_tile, i_bn, strip, shared,  # of `_forward_kernel`
    CAUSAL: tl.constexpr, SAME_LENGTH: tl.constexpr, SEE_SELF: tl.constexpr,
    BY_POSITION: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, WIDTH: tl.constexpr, START: tl.constexpr,
):  # fmt: skip
    """Attention of BM query rows of one stream; the algorithm is in the module's docstring."""
    keys, memory, window, scale = shared.keys, shared.memory, shared.window, shared.log2_scale
    keep_from, keep_scale, seed = shared.keep_from, shared.keep_scale, stream.seed
    heads, biases = shared.heads, shared.biases
    vectors = shared.key_vectors
    SEGMENTS: tl.constexpr = stream.segments is not None
    # Whether a row may see no key.
    FULLY_MASKED: tl.constexpr = not SEE_SELF and (
        vectors.padding is not None or stream.rank_q is not None or stream.bits is not None
    )
    APART: tl.constexpr = shared.key_tensors.k_memory is not None
    IN_ORDER: tl.constexpr = stream.positions is None
    MARGIN: tl.constexpr = BM if IN_ORDER else 0
    STRIDE: tl.constexpr = WIDTH + (BM + BN if IN_ORDER else 0)
    i_b, i_n = _batch_and_head(i_bn, heads)
    length = keys - memory
    vector_rows = length if BY_POSITION else rows
    s_q, s_out, s_key = strides.q, strides.out, shared.key_strides
    q = stream.q + (i_b * s_q[0] + i_n * s_q[2])
    out = stream.out + (i_b * s_out[0] + i_n * s_out[2])
    tensors, _ = _keys_of_head(shared, i_b, i_n, START)
    positions = None if stream.positions is None else stream.positions + i_b * rows
    padding = None if vectors.padding is None else vectors.padding + i_b * keys
    code = None if vectors.code is None else vectors.code + i_b * keys
    rank_k = None if vectors.rank_k is None else vectors.rank_k + i_b * keys

    o_bn = tl.arange(0, BN)
    o_tile = tl.arange(0, BM)[:, None] * STRIDE + o_bn[None, :]
    o_i, m_row, b_pos, i_low, i_top = _row_tile(positions, i_tile * BM, rows, length, BM)
    b_self = b_pos + memory
    o_row = b_pos if BY_POSITION else tl.minimum(o_i, rows - 1)
    rank_q = None if stream.rank_q is None else stream.rank_q + i_b * vector_rows
    bits = None if stream.bits is None else stream.bits + i_b * strides.bits
    i_row = tl.cast(i_tile * BM, tl.int64)
    q += i_row * s_q[1]
    # [BM, BD]
    b_q = _load_rows(q, s_q[1], m_row, BM, D, BD)
    dtype = b_q.dtype
    if SEGMENTS:
        # [BD], [BM]
        b_diff = _segment_difference(biases.seg_embed, heads, i_n, D, BD)
        b_rs = _load_vector(biases.r_s_bias + i_n * D, D, BD)
        b_c = tl.sum((b_q.to(tl.float32) + b_rs[None, :]) * b_diff[None, :], axis=1) * scale
        b_seg = tl.load(stream.segments + i_b * vector_rows + o_row).to(tl.int32)
    # [BM, BD]
    b_qw = (b_q.to(tl.float32) + _load_vector(biases.r_w_bias + i_n * D, D, BD)[None, :]).to(dtype)

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

    b_max = tl.full((BM,), -1e30, tl.float32)
    b_sum = tl.zeros((BM,), tl.float32)
    b_acc = tl.zeros((BM, BD), tl.float32)
    if SEE_SELF:
        b_qr = b_q.to(tl.float32) + _load_vector(biases.r_r_bias + i_n * D, D, BD)[None, :]
        b_qr = b_qr.to(dtype)
        b_k_self, b_v_self = _self_key(tensors, s_key, padding, b_self, m_row, memory, APART, D, BD)
        b_r_self = _load_vector(tensors.r + keys.to(tl.int64) * s_key.r[1], D, BD)
        b_max = tl.sum(b_qw.to(tl.float32) * b_k_self.to(tl.float32), axis=1) * scale
        b_max += tl.sum(b_qr.to(tl.float32) * b_r_self[None, :], axis=1) * scale
        if SEGMENTS:
            b_seg_self = tl.load(vectors.segments + i_b * keys + b_self).to(tl.int32)
            b_max += tl.where(b_seg != b_seg_self, b_c, 0.0)
        b_sum = tl.full((BM,), 1.0, tl.float32)
        b_acc = b_v_self.to(tl.float32)
        if seed is not None:
            m_keep_self = _keep_one(tl.load(seed), o_i, b_self, i_bn, keep_from)
            b_acc = tl.where(m_keep_self[:, None], b_acc, 0.0)

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
            j_stop - j_base, length, shared.r_rows + START, scale, IN_ORDER, D, BD, BM, BN, WIDTH,
            STRIDE, START,
        )  # fmt: skip
        in_memory = i_stretch < n_memory
        p_k, s_kj = _source(
            tensors.k, s_key.k[1], tensors.k_memory, s_key.k_memory[1], in_memory, memory, APART
        )
        p_v, s_vj = _source(
            tensors.v, s_key.v[1], tensors.v_memory, s_key.v_memory[1], in_memory, memory, APART
        )
        tl.debug_barrier()
        for j0 in range(j_base, j_stop, BN):
            o_j = j0 + o_bn
            i_key = tl.cast(j0, tl.int64)
            m_j = o_j < j_stop
            if APART:
                m_j = m_j & (o_j >= j_first)
            if code is not None:
                # [BN]
                b_code = tl.load(code + o_j, mask=m_j, other=PADDED)
                m_j = b_code != PADDED
            # [BM, BN]
            b_bd = tl.load(strip + (MARGIN + j0 - j_base) + o_tile)
            # [BN, BD]
            b_k = _load_rows(p_k + i_key * s_kj, s_kj, m_j, BN, D, BD)
            # [BM, BN]
            b_s = tl.dot(b_qw, tl.trans(b_k), input_precision="ieee") * scale + b_bd
            if SEGMENTS:
                b_s += tl.where(b_seg[:, None] != b_code[None, :], b_c[:, None], 0.0)
            m_seen = _visible(
                m_j[None, :], o_j, b_pos, b_self, rank_q, o_row, rank_k, bits, j0, keys,
                window, CAUSAL, SAME_LENGTH, BM, BN,
            )  # fmt: skip
            if SEE_SELF:
                m_seen = m_seen & (o_j[None, :] != b_self[:, None])
            b_s = tl.where(m_seen, b_s, float("-inf"))

            b_next = tl.maximum(b_max, tl.max(b_s, axis=1))
            b_shrink = tl.exp2(b_max - b_next)
            b_p = tl.exp2(b_s - b_next[:, None])
            b_sum = b_sum * b_shrink + tl.sum(b_p, axis=1)
            if seed is not None:
                m_keep = _keep_tile(tl.load(seed), o_i, j0, i_bn, keep_from, BM, BN)
                b_p = tl.where(m_keep, b_p, 0.0)
            # [BN, BD]
            b_v = _load_rows(p_v + i_key * s_vj, s_vj, m_j, BN, D, BD)
            b_acc = tl.dot(b_p.to(dtype), b_v, b_acc * b_shrink[:, None], input_precision="ieee")
            b_max = b_next
        tl.debug_barrier()  # the strip is free again

    # No sum is zero but that of a row that saw no key: any seen key adds at least exp2(0) to it.
    m_all_masked = m_row & (b_sum == 0.0)
    b_acc *= (keep_scale / tl.where(b_sum == 0.0, 1.0, b_sum))[:, None]
    if FULLY_MASKED and tl.max(m_all_masked.to(tl.int32), axis=0) > 0:
        b_mean = tl.zeros((BM, BD), tl.float32)
        n_memory, n_stretches = _stretches(0, keys, memory, APART, BN, WIDTH)
        for i_stretch in tl.range(0, n_stretches, disable_licm=True):
            j_base, j_first, j_stop = _stretch(
                i_stretch, n_memory, 0, keys, memory, APART, BN, WIDTH
            )
            p_v, s_vj = _source(
                tensors.v, s_key.v[1], tensors.v_memory, s_key.v_memory[1], i_stretch < n_memory,
                memory, APART,
            )  # fmt: skip
            for j0 in range(j_base, j_stop, BN):
                o_j = j0 + o_bn
                m_j = (o_j >= j_first) & (o_j < j_stop)
                # [BN, BD]
                b_v = _load_rows(p_v + tl.cast(j0, tl.int64) * s_vj, s_vj, m_j, BN, D, BD)
                if padding is not None:
                    m_hid = tl.load(padding + o_j, mask=m_j, other=0) != 0
                    b_v = tl.where(m_hid[:, None], _finite_or_zero(b_v), b_v)
                # Missing keys are zero in b_v, rows that see a key are left out below.
                b_p = tl.full((BM, BN), 1.0, tl.float32)
                if seed is not None:
                    m_keep = _keep_tile(tl.load(seed), o_i, j0, i_bn, keep_from, BM, BN)
                    # No choice between 1 and 0: Triton 3.9 hands its bits to the tensor cores'
                    # layout through shared memory, which has none of one bit, and fails (sm_90).
                    b_p = m_keep.to(tl.float32)
                b_mean = tl.dot(b_p.to(dtype), b_v, b_mean, input_precision="ieee")
        b_acc = tl.where(m_all_masked[:, None], b_mean * (keep_scale / keys), b_acc)

    # [BM, BD]
    o_d = tl.arange(0, BD)
    p_out = out + i_row * s_out[1] + (tl.arange(0, BM)[:, None] * s_out[1] + o_d[None, :])
    b_acc = tl.where(m_row[:, None], b_acc, 0.0)
    tl.store(p_out, b_acc.to(dtype), mask=(o_i < rows)[:, None] & (o_d < D)[None, :])
    # [BM]
    b_lse = b_max + tl.log2(tl.where(b_sum == 0.0, 1.0, b_sum))
    b_lse = tl.where(m_all_masked | (m_row == 0), float("inf"), b_lse)
    tl.store(stream.lse + i_bn.to(tl.int64) * rows + o_i, b_lse, mask=o_i < rows)


@jit(do_not_specialize=[*SIZES, "batch"])
def _forward_kernel(
    content, query,  # `ForwardStream`; query None where there is one stream
    strides_h, strides_g,  # `ForwardStrides`
    rows_h, rows_g,  # I, I'
    key_tensors, key_strides, biases, key_vectors,  # `KeyTensors` twice, `Biases`, `KeyVectors`
    strips,  # scratch (programs, max(BM, BM_G), WIDTH)
    batch, heads, keys, memory,  # B, N, J, M
    left, ahead, chunk,  # `launch.window`
    r_rows, group_size,  # P, B / G
    log2_scale, keep_from, keep_scale,  # as in `Shared`
    CAUSAL: tl.constexpr, SAME_LENGTH: tl.constexpr, SELF: tl.constexpr, BY_POSITION: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BM_G: tl.constexpr, BN: tl.constexpr,
    WIDTH: tl.constexpr, START: tl.constexpr,
):  # fmt: skip
    tiles_h = tl.cdiv(rows_h, BM)
    tiles = tiles_h
    strip = strips + tl.program_id(0).to(tl.int64) * (BM * (WIDTH + BM + BN + 1))
    shared = Shared(
        key_tensors=key_tensors, key_strides=key_strides, biases=biases, key_vectors=key_vectors,
        heads=heads, keys=keys, memory=memory, window=(left, ahead, chunk), r_rows=r_rows,
        group_size=group_size, log2_scale=log2_scale, keep_from=keep_from, keep_scale=keep_scale,
    )  # fmt: skip
    if query is not None:
        tiles += tl.cdiv(rows_g, BM_G)
    for i_work in tl.range(
        tl.program_id(0), batch * heads * tiles, tl.num_programs(0), disable_licm=True
    ):
        i_bn = i_work // tiles
        i_tile = i_work % tiles
        if query is None:
            _forward_tile(
                content, strides_h, rows_h, i_tile, i_bn, strip, shared,
                CAUSAL, SAME_LENGTH, SELF[0], BY_POSITION[0], D, BD, BM, BN, WIDTH, START,
            )  # fmt: skip
        else:
            if i_tile < tiles_h:
                _forward_tile(
                    content, strides_h, rows_h, i_tile, i_bn, strip, shared,
                    CAUSAL, SAME_LENGTH, SELF[0], BY_POSITION[0], D, BD, BM, BN, WIDTH, START,
                )  # fmt: skip
            else:
                i_tile -= tiles_h
                _forward_tile(
                    query, strides_g, rows_g, i_tile, i_bn, strip, shared,
                    CAUSAL, SAME_LENGTH, SELF[1], BY_POSITION[1], D, BD, BM_G, BN, WIDTH, START,
                )  # fmt: skip


def rel_attention_forward(
    keys: Keys, streams: Sequence[Queries], outs: Sequence[Tensor], stats: Sequence[Tensor]
) -> None:
    """Fill `outs` with relative attention; the formula is in the module's docstring.

    Args:
        keys: fp16, bf16 or fp32, D <= 128, any strides. Nothing beyond the P rows of r is read:
            their position score counts as 0 ("uni": no visible key needs it).
        streams: one, or the content and the query stream. Rows at positions in ascending order
            are fastest, any order is right.
        outs: (B, I, N, D) per stream, written in full; absent rows are exactly zero.
        stats: fp32 (B, N, I) contiguous per stream: log2 of the softmax's denominator, scores in
            units of log2; +inf for rows that see no key and for absent ones.

    Raises:
        BackendUnavailable: Triton or a CUDA device is missing.
        ArgumentError, ShapeError: what the kernel does not take.
    """
    call = Call(keys, streams)
    if call.is_empty:
        return
    config = call.config("forward")
    targets = [call.target(out) for out in outs]
    programs = min(call.row_tiles(config), call.programs(config))
    strips = call.scratch(programs, call.strip_elements(config))
    with device_guard(streams[0].q):
        run_kernel(
            _forward_kernel, (programs,),
            *call.per_stream("forward", out=targets, lse=stats), *call.rows, *call.key_arguments,
            strips, *call.sizes, call.log2_scale, call.keep_from, call.keep_scale, **call.flags,
            **call.shape(config), WIDTH=call.width, **config.options,
        )  # fmt: skip
    for out, target in zip(outs, targets, strict=True):
        call.write_back(out, target)
