"""Attention probabilities by the CUDA C++ kernels: from tensors to addresses and strides.

Letters: B batch, N heads, I query rows, J keys, P columns of the position table. The kernels are in
``csrc/cuda/masked_softmax.cuh``; they take fp32, bf16 and fp16, compute in fp32 and give the same
bits every time. Nothing here waits for the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.kernels.cuda import entries, why_unavailable
from xlnet_fast.kernels.cuda.memory import DTYPES, Memory, window
from xlnet_fast.operands import SoftmaxInputs, check_gradients, check_like, rows_in_order
from xlnet_fast.philox import keep_threshold

MAX_ROWS = 2**31 - 1  # B * N * I: rows are counted in 32 bits
MAX_COLUMNS = 2**29 - 1  # J and P: their sums with a position fit 32 bits


@torch.no_grad()
def masked_softmax_forward(inputs: SoftmaxInputs, out: Tensor) -> None:
    """Fill ``out`` (B, N, I, J); see ``ops.masked_softmax``.

    Args:
        inputs: of any strides; all tensors on one device, the seed too.
        out: like the scores and written in full; its last stride is 1.

    Raises:
        BackendUnavailable: no kernels, or no GPU that runs them.
        ArgumentError, ShapeError: what memory would not survive; a public op checks it before.
    """
    _check(inputs)
    check_like("out", out, inputs.scores)
    if inputs.scores.numel() == 0:
        return
    if out.stride(-1) != 1:
        raise ArgumentError(f"out has strides {out.stride()}, expected the last to be 1")
    memory = Memory()
    arguments = _arguments(memory, inputs) | {"out": memory.output(out)}
    entries.call("masked_softmax_forward", memory, out.device, arguments)


@torch.no_grad()
def masked_softmax_backward(
    inputs: SoftmaxInputs, out: Tensor, grad_out: Tensor, grads: Sequence[Tensor]
) -> None:
    """Fill ``grads``, contiguous, shaped like scores, position_scores and segment_scores.

    The probabilities are computed again: ``out``, which may be of half precision, is not read. The
    gradient of an argument that is None is an empty tensor and left alone. Always deterministic.

    Raises:
        BackendUnavailable, ArgumentError, ShapeError: as ``masked_softmax_forward``.
    """
    _check(inputs)
    check_like("grad_out", grad_out, inputs.scores)
    if inputs.scores.numel() == 0:
        return
    check_gradients(inputs, grads)
    memory = Memory()
    arguments = _arguments(memory, inputs)
    arguments["d_out"] = memory.view(rows_in_order(grad_out))
    names = ("d_scores", "d_position_scores", "d_segment_scores")
    for name, like, grad in zip(names, inputs.terms, grads, strict=True):
        arguments[name] = None if like is None else memory.output(grad)
    entries.call("masked_softmax_backward", memory, grad_out.device, arguments)


def _arguments(memory: Memory, inputs: SoftmaxInputs) -> dict[str, Any]:
    """Fields of ``MaskedSoftmaxParams`` in csrc/params.h, but for the outputs."""
    batch, heads, rows, keys = inputs.scores.shape
    mask, bits, dropout_p = inputs.mask, inputs.mask.bits, inputs.dropout_p
    scores, position_scores, segment_scores = (
        None if x is None else memory.view(rows_in_order(x)) for x in inputs.terms
    )
    return {
        "dtype": DTYPES[inputs.scores.dtype],
        "batch": batch, "heads": heads, "rows": rows, "keys": keys,
        "memory": inputs.memory_length, "table": inputs.table,
        "scores": scores, "position_scores": position_scores, "segment_scores": segment_scores,
        "segments_q": memory.integers(inputs.segments_q),
        "segments_k": memory.integers(inputs.segments_k),
        "positions": memory.integers(inputs.positions),
        "key_padding": memory.flat(mask.key_padding),
        "rank_q": memory.integers(mask.rank_q),
        "rank_k": memory.integers(mask.rank_k),
        "bits": memory.flat(bits),
        "bits_batch_stride": 0 if bits is None or bits.shape[0] == 1 else bits[0].numel(),
        "causal": mask.causal, "same_length": mask.same_length, "see_self": mask.see_self,
        **window(mask, keys, inputs.current),
        "scale": inputs.scale,
        "keep_scale": 1.0 / (1.0 - dropout_p),
        "keep_from": keep_threshold(dropout_p),
        "seed_at": memory.flat(inputs.seed) if dropout_p > 0.0 else None,
        "dropout": dropout_p > 0.0,
    }  # fmt: skip


def _check(inputs: SoftmaxInputs) -> None:
    reason = why_unavailable(inputs.scores.device)
    if reason is not None:
        raise BackendUnavailable(reason)
    inputs.check()
    batch, heads, rows, keys = inputs.scores.shape
    if batch * heads * rows > MAX_ROWS or max(keys, inputs.table) > MAX_COLUMNS:
        raise ArgumentError(
            f"backend cuda takes up to {MAX_ROWS} rows of up to {MAX_COLUMNS} scores, not "
            f"{batch * heads * rows} of {max(keys, inputs.table)}"
        )
