"""Attention probabilities and their gradients: every term, the mask and dropout in one kernel each.

Letters: b batch, n head, i query row, j key, p row of r; B, N, I, J, P their counts; M memory
length, L = J - M keys of the current segment; pos_i the position of row i.

    s[i,j]  = scale * (scores[i,j] + position_scores[i, j - pos_i + L] + [seg_i != seg_j] c_i)
    P[i,j]  = softmax over j of s, a hidden key's score being -1e30                       fp32
    out     = P * keep / (1 - p)
    dP      = d_out * keep / (1 - p)
    dS      = scale * P * (dP - sum_j P dP) = d_scores = d_position_scores[i, j - pos_i + L]
    dc_i    = sum over the keys of another segment of dS

The position score is 0 where its table has no such row. A program owns BM rows of one (b, n). Up to
1024 keys a row stays in registers; longer rows are read in two sweeps: maximum and
sum (and sum_j P dP) as a running softmax, then what is written. In the backward pass a row meets
each column of its table at most once, so plain stores do and the order of evaluation is fixed.
NaN in the score of a hidden key reaches nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError
from xlnet_fast.kernels.triton import jit, tl
from xlnet_fast.kernels.triton.compilation import Compilation
from xlnet_fast.kernels.triton.compiling import run_kernel
from xlnet_fast.kernels.triton.masked_softmax_launch import (
    OPTIONS,
    TILES,
    check_device,
    constants_of,
    device_guard,
    grid_of,
    launch_arguments,
)
from xlnet_fast.kernels.triton.tile_ops import _expand_bits, _keep_tile
from xlnet_fast.operands import SoftmaxInputs, check_gradients, check_like, rows_in_order


@jit()
def _positions_of(positions, i_b, rows, o_i):
    """Positions of the rows o_i, within 30 bits so that sums with a key number fit 32: [BM]."""
    b_pos = o_i
    if positions is not None:
        b_pos = tl.load(positions + i_b * rows + o_i, mask=o_i < rows, other=0)
        b_pos = tl.minimum(tl.maximum(b_pos, -(2**30)), 2**30).to(tl.int32)
    return b_pos


@jit()
def _score_tile(
    scores, position_scores, segment_scores, segments, mask, strides,  # as the kernels' arguments
    b_pos, i_b, i_n, o_i, j0,  # positions [BM], batch, head, rows [BM], first key
    rows, keys, length, width, heads, scale,
    CAUSAL: tl.constexpr, SAME_LENGTH: tl.constexpr, SEE_SELF: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Scores [BM, BN] in fp32: -1e30 for hidden keys, -inf beyond the last."""
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


@jit()
def _store_probabilities(
    p_out, b_p, seed, o_i, j0, i_bn, rows, keys, keep_from, keep_scale,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Drop, scale and write a tile of probabilities; p_out [BM] are the rows of the output."""
    o_j = j0 + tl.arange(0, BN)
    if seed is not None:
        m_keep = _keep_tile(tl.load(seed), o_i, j0, i_bn, keep_from, BM, BN)
        b_p = tl.where(m_keep, b_p * keep_scale, 0.0)
    m_out = (o_i < rows)[:, None] & (o_j < keys)[None, :]
    tl.store(p_out[:, None] + o_j[None, :], b_p.to(p_out.dtype.element_ty), mask=m_out)


# Sizes are not specialised: a new length must not mean a new compilation. But for the number of
# keys: only where it is known to be a multiple of 16 does a thread move 16 bytes at once.
_SIZES = ("rows", "length", "width", "heads")


@jit(do_not_specialize=[*_SIZES, "keep_from"])
def _forward_kernel(
    scores, position_scores, segment_scores,  # (B, N, I, J)  (B, N, I, P)  (B, N, I); None without
    segments,  # segments_q (B, I), segments_k (B, J); None without
    mask,  # key_padding (B, J), rank_q (B, I), rank_k (B, J), bits (B, I, ceil(J/8)); or None
    positions,  # (B, I), or None: row i sits at position i
    seed,  # one int64, or None without dropout
    out,  # (B, N, I, J)
    strides,  # of scores, position_scores: (b, n, row); of bits: b
    s_out,  # (b, n, row)
    rows, keys, length, width, heads,  # I, J, L, P, N
    scale, keep_from, keep_scale,  # of the scores; dropout threshold; 1 / (1 - dropout_p)
    CAUSAL: tl.constexpr, SAME_LENGTH: tl.constexpr, SEE_SELF: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    n_tiles = tl.cdiv(rows, BM)
    i_bn = tl.program_id(0) // n_tiles
    i_b = (i_bn // heads).to(tl.int64)
    i_n = (i_bn % heads).to(tl.int64)
    o_i = (tl.program_id(0) % n_tiles) * BM + tl.arange(0, BM)
    b_pos = _positions_of(positions, i_b, rows, o_i)
    p_out = out + i_b * s_out[0] + i_n * s_out[1] + o_i.to(tl.int64) * s_out[2]

    if WHOLE:
        # [BM, BN]
        b_s = _score_tile(
            scores, position_scores, segment_scores, segments, mask, strides, b_pos, i_b, i_n, o_i,
            0, rows, keys, length, width, heads, scale, CAUSAL, SAME_LENGTH, SEE_SELF, BM, BN,
        )  # fmt: skip
        b_p = tl.exp(b_s - tl.max(b_s, axis=1)[:, None])
        b_p = b_p / tl.sum(b_p, axis=1)[:, None]
        _store_probabilities(
            p_out, b_p, seed, o_i, 0, i_bn, rows, keys, keep_from, keep_scale, BM, BN
        )
    else:
        # Not -inf: the difference of a first tile of infinite scores must not be NaN.
        b_max = tl.full((BM,), -3e38, tl.float32)
        b_sum = tl.zeros((BM,), tl.float32)
        for j0 in range(0, keys, BN):
            b_s = _score_tile(
                scores, position_scores, segment_scores, segments, mask, strides, b_pos, i_b, i_n,
                o_i, j0, rows, keys, length, width, heads, scale,
                CAUSAL, SAME_LENGTH, SEE_SELF, BM, BN,
            )  # fmt: skip
            b_next = tl.maximum(b_max, tl.max(b_s, axis=1))
            b_sum = b_sum * tl.exp(b_max - b_next)
            b_sum += tl.sum(tl.exp(b_s - b_next[:, None]), axis=1)
            b_max = b_next
        for j0 in range(0, keys, BN):
            b_s = _score_tile(
                scores, position_scores, segment_scores, segments, mask, strides, b_pos, i_b, i_n,
                o_i, j0, rows, keys, length, width, heads, scale,
                CAUSAL, SAME_LENGTH, SEE_SELF, BM, BN,
            )  # fmt: skip
            b_p = tl.exp(b_s - b_max[:, None]) / b_sum[:, None]
            _store_probabilities(
                p_out, b_p, seed, o_i, j0, i_bn, rows, keys, keep_from, keep_scale, BM, BN
            )


@jit()
def _upstream_tile(
    p_grad, seed, o_i, j0, i_bn, rows, keys, keep_from, keep_scale,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """dP [BM, BN] in fp32, zero beyond the last key; p_grad [BM] are the rows of d_out."""
    o_j = j0 + tl.arange(0, BN)
    m_grad = (o_i < rows)[:, None] & (o_j < keys)[None, :]
    b_dp = tl.load(p_grad[:, None] + o_j[None, :], mask=m_grad, other=0.0).to(tl.float32)
    if seed is not None:
        m_keep = _keep_tile(tl.load(seed), o_i, j0, i_bn, keep_from, BM, BN)
        b_dp = tl.where(m_keep, b_dp * keep_scale, 0.0)
    return b_dp


@jit()
def _store_gradients(
    b_ds, d_scores, d_position, segments, b_pos, i_bn, i_b, o_i, j0, rows, keys, length, width,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Write a tile of dS (BM, BN) to both tables; return its part of dc, [BM]."""
    segments_q, segments_k = segments
    o_j = j0 + tl.arange(0, BN)
    m_i = o_i < rows
    m_j = o_j < keys
    m_ds = m_i[:, None] & m_j[None, :]
    o_row = i_bn.to(tl.int64) * rows + o_i
    p_scores = d_scores + o_row * keys
    tl.store(p_scores[:, None] + o_j[None, :], b_ds.to(d_scores.dtype.element_ty), mask=m_ds)
    if d_position is not None:
        o_p = o_j[None, :] - b_pos[:, None] + length
        tl.store(
            (d_position + o_row * width)[:, None] + o_p, b_ds.to(d_position.dtype.element_ty),
            mask=m_ds & (o_p >= 0) & (o_p < width),
        )  # fmt: skip
    b_dc = tl.zeros((BM,), tl.float32)
    if segments_q is not None:
        b_seg_q = tl.load(segments_q + i_b * rows + o_i, mask=m_i, other=0)
        b_seg_k = tl.load(segments_k + i_b * keys + o_j, mask=m_j, other=0)
        b_dc = tl.sum(tl.where(b_seg_q[:, None] != b_seg_k[None, :], b_ds, 0.0), axis=1)
    return b_dc


@jit()
def _clear_unmet(d_position, b_pos, i_bn, o_i, rows, keys, length, width, BN: tl.constexpr):
    """Zero the columns of the table that no key of a row meets: all but L - pos .. L - pos + J."""
    b_start = tl.minimum(tl.maximum(length - b_pos, 0), width)
    b_stop = tl.minimum(tl.maximum(length - b_pos + keys, 0), width)
    b_unmet = tl.where(o_i < rows, width - (b_stop - b_start), 0)
    p_row = d_position + (i_bn.to(tl.int64) * rows + o_i) * width
    for w0 in range(0, tl.max(b_unmet, axis=0), BN):
        o_w = (w0 + tl.arange(0, BN))[None, :]
        o_p = o_w + tl.where(o_w < b_start[:, None], 0, (b_stop - b_start)[:, None])
        m_w = o_w < b_unmet[:, None]
        tl.store(p_row[:, None] + o_p, tl.zeros(o_p.shape, d_position.dtype.element_ty), mask=m_w)


@jit(do_not_specialize=[*_SIZES, "keep_from"])
def _backward_kernel(
    scores, position_scores, segment_scores, segments, mask, positions, seed,  # as _forward_kernel
    grad_out,  # (B, N, I, J)
    d_scores, d_position, d_segment,  # contiguous, like the first three; None without
    strides, s_grad,  # as _forward_kernel; of grad_out: (b, n, row)
    rows, keys, length, width, heads, scale, keep_from, keep_scale,
    CAUSAL: tl.constexpr, SAME_LENGTH: tl.constexpr, SEE_SELF: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    n_tiles = tl.cdiv(rows, BM)
    i_bn = tl.program_id(0) // n_tiles
    i_b = (i_bn // heads).to(tl.int64)
    i_n = (i_bn % heads).to(tl.int64)
    o_i = (tl.program_id(0) % n_tiles) * BM + tl.arange(0, BM)
    b_pos = _positions_of(positions, i_b, rows, o_i)
    p_grad = grad_out + i_b * s_grad[0] + i_n * s_grad[1] + o_i.to(tl.int64) * s_grad[2]

    if WHOLE:
        # [BM, BN]
        b_s = _score_tile(
            scores, position_scores, segment_scores, segments, mask, strides, b_pos, i_b, i_n, o_i,
            0, rows, keys, length, width, heads, scale, CAUSAL, SAME_LENGTH, SEE_SELF, BM, BN,
        )  # fmt: skip
        b_p = tl.exp(b_s - tl.max(b_s, axis=1)[:, None])
        b_p = b_p / tl.sum(b_p, axis=1)[:, None]
        b_ds = _upstream_tile(p_grad, seed, o_i, 0, i_bn, rows, keys, keep_from, keep_scale, BM, BN)
        b_ds = b_p * (b_ds - tl.sum(b_p * b_ds, axis=1)[:, None]) * scale
        b_dc = _store_gradients(
            b_ds, d_scores, d_position, segments, b_pos, i_bn, i_b, o_i, 0, rows, keys, length,
            width, BM, BN,
        )  # fmt: skip
    else:
        b_max = tl.full((BM,), -3e38, tl.float32)
        b_sum = tl.zeros((BM,), tl.float32)
        b_dot = tl.zeros((BM,), tl.float32)  # sum_j P dP, times b_sum
        for j0 in range(0, keys, BN):
            b_s = _score_tile(
                scores, position_scores, segment_scores, segments, mask, strides, b_pos, i_b, i_n,
                o_i, j0, rows, keys, length, width, heads, scale,
                CAUSAL, SAME_LENGTH, SEE_SELF, BM, BN,
            )  # fmt: skip
            b_dp = _upstream_tile(
                p_grad, seed, o_i, j0, i_bn, rows, keys, keep_from, keep_scale, BM, BN
            )
            b_next = tl.maximum(b_max, tl.max(b_s, axis=1))
            b_shrink = tl.exp(b_max - b_next)
            b_p = tl.exp(b_s - b_next[:, None])
            b_sum = b_sum * b_shrink + tl.sum(b_p, axis=1)
            b_dot = b_dot * b_shrink + tl.sum(b_p * b_dp, axis=1)
            b_max = b_next
        b_dot = b_dot / b_sum
        b_dc = tl.zeros((BM,), tl.float32)
        for j0 in range(0, keys, BN):
            b_s = _score_tile(
                scores, position_scores, segment_scores, segments, mask, strides, b_pos, i_b, i_n,
                o_i, j0, rows, keys, length, width, heads, scale,
                CAUSAL, SAME_LENGTH, SEE_SELF, BM, BN,
            )  # fmt: skip
            b_dp = _upstream_tile(
                p_grad, seed, o_i, j0, i_bn, rows, keys, keep_from, keep_scale, BM, BN
            )
            b_ds = tl.exp(b_s - b_max[:, None]) / b_sum[:, None] * (b_dp - b_dot[:, None]) * scale
            b_dc += _store_gradients(
                b_ds, d_scores, d_position, segments, b_pos, i_bn, i_b, o_i, j0, rows, keys, length,
                width, BM, BN,
            )  # fmt: skip
    if d_position is not None:
        _clear_unmet(d_position, b_pos, i_bn, o_i, rows, keys, length, width, BN)
    if d_segment is not None:
        p_segment = d_segment + i_bn.to(tl.int64) * rows + o_i
        tl.store(p_segment, b_dc.to(d_segment.dtype.element_ty), mask=o_i < rows)


@torch.no_grad()
def masked_softmax_forward(inputs: SoftmaxInputs, out: Tensor) -> None:
    """Fill ``out`` (B, N, I, J); the formula is in the module's docstring.

    Args:
        inputs: the three scores fp16, bf16 or fp32, of any strides; all tensors on one device, the
            seed too, which is needed where dropout_p > 0.
        out: (B, N, I, J), like the scores and written in full; its last stride is 1.

    Raises:
        BackendUnavailable: Triton or a CUDA device is missing.
        ArgumentError: a dtype, device or value that the kernel does not take. ShapeError: shapes
            that do not agree.
    """
    check_device(inputs.scores.device)
    inputs.check()
    check_like("out", out, inputs.scores)
    if inputs.scores.numel() == 0:
        return
    if out.stride(-1) != 1:
        raise ArgumentError(f"out has strides {out.stride()}, expected the last to be 1")
    shared, strides, sizes = launch_arguments(inputs)
    with device_guard(inputs.scores.device):
        run_kernel(
            _forward_kernel, grid_of(inputs.scores), *shared, out, strides, out.stride()[:3],
            *sizes, **constants_of(inputs),
        )  # fmt: skip


@torch.no_grad()
def masked_softmax_backward(
    inputs: SoftmaxInputs, out: Tensor, grad_out: Tensor, grads: Sequence[Tensor]
) -> None:
    """Fill ``grads``, contiguous, shaped like scores, position_scores and segment_scores.

    Arguments and errors as `masked_softmax_forward`. ``grad_out`` is (B, N, I, J), any strides;
    ``out`` is not read, as it may be of half precision: probabilities are computed again. The
    gradient of an argument that is None is an empty tensor and left alone.
    """
    d_scores, d_position, d_segment = grads
    check_device(inputs.scores.device)
    inputs.check()
    check_like("grad_out", grad_out, inputs.scores)
    if inputs.scores.numel() == 0:
        return
    check_gradients(inputs, grads)
    grad_out = rows_in_order(grad_out)
    shared, strides, sizes = launch_arguments(inputs)
    with device_guard(inputs.scores.device):
        run_kernel(
            _backward_kernel, grid_of(inputs.scores), *shared, grad_out, d_scores,
            None if inputs.position_scores is None else d_position,
            None if inputs.segment_scores is None else d_segment,
            strides, grad_out.stride()[:3], *sizes, **constants_of(inputs),
        )  # fmt: skip


def compilations(arch: int) -> Iterator[Compilation]:
    """Every tile of both kernels with all their optional arguments, for the kernels report.

    Ragged: the number of keys is no multiple of 16. As to registers fp16 is bf16, which stands for
    both.
    """
    row = ("i32", "i32", "i32")
    for dtype in ("bf16", "fp32"):
        x = f"*{dtype}"
        types: dict[str, Any] = {
            **dict.fromkeys(("scores", "position_scores", "segment_scores", "out"), x),
            **dict.fromkeys(("grad_out", "d_scores", "d_position", "d_segment"), x),
            "segments": ("*i64", "*i64"), "mask": ("*u8", "*i64", "*i64", "*u8"),
            "positions": "*i64", "seed": "*i64", "strides": (row, row, "i32"),
            "s_out": row, "s_grad": row, **dict.fromkeys((*_SIZES, "keys"), "i32"),
            "scale": "fp32", "keep_from": "i32", "keep_scale": "fp32",
        }  # fmt: skip
        kernels = (("forward", _forward_kernel), ("backward", _backward_kernel))
        layouts = (True, False)
        for (name, function), tile, aligned in itertools.product(kernels, TILES, layouts):
            yield Compilation(
                    kernel=f"masked_softmax_{name}",
                    variant="row in registers" if tile.whole else "two sweeps",
                    features="all" if aligned else "all, ragged",
                    dtype=dtype,
                    head_dim=None,
                    function=function,
                    types=types,
                    constants={
                        **dict.fromkeys(("CAUSAL", "SAME_LENGTH", "SEE_SELF"), True),
                        "BM": tile.block_m, "BN": tile.block_n, "WHOLE": tile.whole,
                    },
                    options=OPTIONS,
                    tile=(tile.block_m, tile.block_n),
                    aligned=aligned,
                )  # fmt: skip
