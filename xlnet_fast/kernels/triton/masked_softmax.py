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
from xlnet_fast.kernels.triton.masked_softmax_scores import _own_rows, _score_tile
from xlnet_fast.kernels.triton.tile_ops import _keep_tile
from xlnet_fast.operands import SoftmaxInputs, check_gradients, check_like, rows_in_order


@jit()
def _store_probabilities(
    p_out, b_p, dropout, o_i, j0, i_bn, rows, keys, BM: tl.constexpr, BN: tl.constexpr
):
    """Drop, scale and write a tile of probabilities; p_out [BM] are the rows of the output."""
    seed, keep_from, keep_scale = dropout
    o_j = j0 + tl.arange(0, BN)
    if seed is not None:
        m_keep = _keep_tile(tl.load(seed), o_i, j0, i_bn, keep_from, BM, BN)
        b_p = tl.where(m_keep, b_p * keep_scale, 0.0)
    m_out = (o_i < rows)[:, None] & (o_j < keys)[None, :]
    tl.store(p_out[:, None] + o_j[None, :], b_p.to(p_out.dtype.element_ty), mask=m_out)


# Sizes are not specialised: a new length must not mean a new compilation. But for the number of
# keys: only where it is known to be a multiple of 16 does a thread move 16 bytes at once.
_SIZES = ("rows", "left", "ahead", "chunk", "length", "width", "heads")


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
    rows, keys, left, ahead, chunk, length, width, heads,  # I, J, `launch.window`, L, P, N
    scale, keep_from, keep_scale,  # of the scores; dropout threshold; 1 / (1 - dropout_p)
    CAUSAL: tl.constexpr, SAME_LENGTH: tl.constexpr, SEE_SELF: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    own = _own_rows(positions, rows, heads, BM)
    i_bn, i_b, i_n, o_i, _ = own
    operands = (scores, position_scores, segment_scores, segments, mask, strides)
    sizes = (rows, keys, (left, ahead, chunk), length, width, heads, scale)
    dropout = (seed, keep_from, keep_scale)
    p_out = out + i_b * s_out[0] + i_n * s_out[1] + o_i.to(tl.int64) * s_out[2]

    if WHOLE:
        # [BM, BN]
        b_s = _score_tile(operands, sizes, own, 0, CAUSAL, SAME_LENGTH, SEE_SELF, BM, BN)
        b_p = tl.exp(b_s - tl.max(b_s, axis=1)[:, None])
        b_p = b_p / tl.sum(b_p, axis=1)[:, None]
        _store_probabilities(p_out, b_p, dropout, o_i, 0, i_bn, rows, keys, BM, BN)
    else:
        # Not -inf: the difference of a first tile of infinite scores must not be NaN.
        b_max = tl.full((BM,), -3e38, tl.float32)
        b_sum = tl.zeros((BM,), tl.float32)
        for j0 in range(0, keys, BN):
            b_s = _score_tile(operands, sizes, own, j0, CAUSAL, SAME_LENGTH, SEE_SELF, BM, BN)
            b_next = tl.maximum(b_max, tl.max(b_s, axis=1))
            b_sum = b_sum * tl.exp(b_max - b_next)
            b_sum += tl.sum(tl.exp(b_s - b_next[:, None]), axis=1)
            b_max = b_next
        for j0 in range(0, keys, BN):
            b_s = _score_tile(operands, sizes, own, j0, CAUSAL, SAME_LENGTH, SEE_SELF, BM, BN)
            b_p = tl.exp(b_s - b_max[:, None]) / b_sum[:, None]
            _store_probabilities(p_out, b_p, dropout, o_i, j0, i_bn, rows, keys, BM, BN)


@jit()
def _upstream_tile(p_grad, dropout, o_i, j0, i_bn, rows, keys, BM: tl.constexpr, BN: tl.constexpr):
    """dP [BM, BN] in fp32, zero beyond the last key; p_grad [BM] are the rows of d_out."""
    seed, keep_from, keep_scale = dropout
    o_j = j0 + tl.arange(0, BN)
    m_grad = (o_i < rows)[:, None] & (o_j < keys)[None, :]
    b_dp = tl.load(p_grad[:, None] + o_j[None, :], mask=m_grad, other=0.0).to(tl.float32)
    if seed is not None:
        m_keep = _keep_tile(tl.load(seed), o_i, j0, i_bn, keep_from, BM, BN)
        b_dp = tl.where(m_keep, b_dp * keep_scale, 0.0)
    return b_dp


@jit()
def _store_gradients(
    b_ds, d_scores, d_position, segments, own, j0, sizes, BM: tl.constexpr, BN: tl.constexpr
):
    """Write a tile of dS (BM, BN) to both tables; return its part of dc, [BM]."""
    segments_q, segments_k = segments
    rows, keys, _, length, width, _, _ = sizes
    i_bn, i_b, _, o_i, b_pos = own
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
    rows, keys, left, ahead, chunk, length, width, heads, scale, keep_from, keep_scale,
    CAUSAL: tl.constexpr, SAME_LENGTH: tl.constexpr, SEE_SELF: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    own = _own_rows(positions, rows, heads, BM)
    i_bn, i_b, i_n, o_i, b_pos = own
    operands = (scores, position_scores, segment_scores, segments, mask, strides)
    sizes = (rows, keys, (left, ahead, chunk), length, width, heads, scale)
    dropout = (seed, keep_from, keep_scale)
    p_grad = grad_out + i_b * s_grad[0] + i_n * s_grad[1] + o_i.to(tl.int64) * s_grad[2]

    if WHOLE:
        # [BM, BN]
        b_s = _score_tile(operands, sizes, own, 0, CAUSAL, SAME_LENGTH, SEE_SELF, BM, BN)
        b_p = tl.exp(b_s - tl.max(b_s, axis=1)[:, None])
        b_p = b_p / tl.sum(b_p, axis=1)[:, None]
        b_ds = _upstream_tile(p_grad, dropout, o_i, 0, i_bn, rows, keys, BM, BN)
        b_ds = b_p * (b_ds - tl.sum(b_p * b_ds, axis=1)[:, None]) * scale
        b_dc = _store_gradients(b_ds, d_scores, d_position, segments, own, 0, sizes, BM, BN)
    else:
        b_max = tl.full((BM,), -3e38, tl.float32)
        b_sum = tl.zeros((BM,), tl.float32)
        b_dot = tl.zeros((BM,), tl.float32)  # sum_j P dP, times b_sum
        for j0 in range(0, keys, BN):
            b_s = _score_tile(operands, sizes, own, j0, CAUSAL, SAME_LENGTH, SEE_SELF, BM, BN)
            b_dp = _upstream_tile(p_grad, dropout, o_i, j0, i_bn, rows, keys, BM, BN)
            b_next = tl.maximum(b_max, tl.max(b_s, axis=1))
            b_shrink = tl.exp(b_max - b_next)
            b_p = tl.exp(b_s - b_next[:, None])
            b_sum = b_sum * b_shrink + tl.sum(b_p, axis=1)
            b_dot = b_dot * b_shrink + tl.sum(b_p * b_dp, axis=1)
            b_max = b_next
        b_dot = b_dot / b_sum
        b_dc = tl.zeros((BM,), tl.float32)
        for j0 in range(0, keys, BN):
            b_s = _score_tile(operands, sizes, own, j0, CAUSAL, SAME_LENGTH, SEE_SELF, BM, BN)
            b_dp = _upstream_tile(p_grad, dropout, o_i, j0, i_bn, rows, keys, BM, BN)
            b_ds = tl.exp(b_s - b_max[:, None]) / b_sum[:, None] * (b_dp - b_dot[:, None]) * scale
            b_dc += _store_gradients(b_ds, d_scores, d_position, segments, own, j0, sizes, BM, BN)
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
