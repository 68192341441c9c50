"""Relative attention backward, fused: gradients by recomputation, two kernels, both streams.

Letters as in the forward kernel. With P the softmax, keep the dropout factor and dP its gradient,

    dP_ij = keep_ij dO_i . v_j           D_i  = sum_j P_ij dP_ij          dS = P (dP - D)
    dv_j  = sum_i keep_ij P_ij dO_i      dk_j = scale sum_i dS_ij (q_i + r_w_bias)
    dq_i  = scale (sum_j dS_ij k_j + sum_j dS_ij r_p + dc_i (seg_embed_1 - seg_embed_0))
    dc_i  = sum_j dS_ij [segments differ]
    dr_p  = scale sum_{b in group, i} dS[i, p + pos_i - L] (q_i + r_r_bias)

`rel_attention_backward_q.py` owns rows and runs first, `rel_attention_backward_kv.py` owns keys.
Where the same bits are wanted every time, the copies of dr that programs made are summed in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from xlnet_fast.kernels.triton.compiling import run_kernel
from xlnet_fast.kernels.triton.launch import Call, device_guard
from xlnet_fast.kernels.triton.rel_attention_arguments import KeyGrads
from xlnet_fast.kernels.triton.rel_attention_backward_kv import _backward_kv_kernel
from xlnet_fast.kernels.triton.rel_attention_backward_q import _backward_q_kernel
from xlnet_fast.operands import Keys, Queries


class _RowSums(NamedTuple):
    """Per stream what the first kernel leaves to the second, fp32 (B, N, I)."""

    delta: Sequence[Tensor]  # D_i
    c: Sequence[Tensor | None]  # with the scale in units of log2; None without segments
    norm: Sequence[Tensor]  # one over the sum of P


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
    row_sums = _RowSums(
        delta=[torch.empty_like(x) for x in stats],
        c=[None if keys.segments is None else torch.empty_like(x) for x in stats],
        norm=[torch.empty_like(x) for x in stats],
    )
    with device_guard(streams[0].q):
        _launch_q(call, outs, stats, row_sums, grad_outs, d_streams, of_keys[4:], deterministic)
        _launch_kv(call, stats, row_sums, grad_outs, of_keys[:4])


def _launch_q(
    call: Call, outs: Sequence[Tensor], stats: Sequence[Tensor], row_sums: _RowSums,
    grad_outs: Sequence[Tensor], d_streams: Sequence[Tensor | None],
    d_r_and_biases: Sequence[Tensor | None], deterministic: bool,
) -> None:  # fmt: skip
    """dq of every stream, dr, the biases' gradients; also `row_sums`, for `_launch_kv`."""
    keys, heads, groups = call.keys, call.heads, call.keys.r.shape[0]
    config = call.config("backward_q")
    work = call.row_tiles(config) // (heads * groups)
    fitting = call.programs(config)
    splits = max(1, min(work, fitting // (heads * groups)))
    programs = min(heads * groups * splits, fitting)
    strip, d_strip = call.strip_elements(config), config.block_m * call.width
    strips, d_strips = (call.scratch(programs, each) for each in (strip, d_strip))
    targets = [
        call.target(torch.empty_like(stream.q) if dq is None else dq)
        for stream, dq in zip(call.streams, d_streams, strict=True)
    ]
    of_streams = call.per_stream(
        "backward_q", out=[call.tiles(x) for x in outs], d_out=[call.tiles(x) for x in grad_outs],
        dq=targets, lse=stats, **row_sums._asdict(),
    )  # fmt: skip
    table, copies = keys.r.shape[1], splits if deterministic else 1
    fp32 = partial(torch.zeros, dtype=torch.float32, device=call.device)
    dr = fp32((heads, groups, copies, table, call.padded_d))
    sums = fp32((heads, groups * splits, 4, call.padded_d))
    run_kernel(
        _backward_q_kernel, (programs,),
        *of_streams, *call.rows, *call.key_arguments, dr, sums, strips, d_strips, *call.sizes[1:],
        groups, splits, keys.scale, call.log2_scale, call.keep_from, call.keep_scale, **call.flags,
        **call.shape(config), WIDTH=call.width, STRIP=strip, D_STRIP=d_strip,
        ATOMIC=not deterministic, **config.options,
    )  # fmt: skip
    for dq, target in zip(d_streams, targets, strict=True):
        if dq is not None:
            call.write_back(dq, target)
    d_r, d_w_bias, d_r_bias, d_s_bias, d_embed = d_r_and_biases
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
    call: Call, stats: Sequence[Tensor], row_sums: _RowSums, grad_outs: Sequence[Tensor],
    of_keys: Sequence[Tensor | None],
) -> None:  # fmt: skip
    """dk and dv, and those of the memory."""
    if all(grad is None for grad in of_keys):
        return
    keys = call.keys
    config = call.config("backward_kv")
    likes = (keys.k, keys.v, keys.k_memory, keys.v_memory)
    targets = KeyGrads._make(
        None if like is None else call.target(torch.empty_like(like) if grad is None else grad)
        for like, grad in zip(likes, of_keys, strict=True)
    )
    tiles = -(-keys.count // config.block_n) + (keys.k_memory is not None)
    programs = min(call.batch * call.heads * tiles, call.programs(config))
    strip = call.width * (config.block_n + 2 * config.block_m) + config.block_m
    strips = call.scratch(programs, strip)
    d_outs = [call.tiles(x) for x in grad_outs]
    of_streams = call.per_stream("backward_kv", d_out=d_outs, lse=stats, **row_sums._asdict())
    run_kernel(
        _backward_kv_kernel, (programs,),
        *of_streams, *call.rows, *call.key_arguments,
        targets, KeyGrads._make(map(call.strides, targets)), strips,
        *call.sizes, keys.scale, call.log2_scale, call.keep_from, call.keep_scale, **call.flags,
        **call.shape(config), HEIGHT=call.width, **config.options,
    )  # fmt: skip
    for grad, target in zip(of_keys, targets, strict=True):
        if grad is not None and target is not None:
            call.write_back(grad, target)
