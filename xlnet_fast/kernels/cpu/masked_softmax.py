"""Attention probabilities by the C++ kernels: from tensors to addresses and strides.

Letters: B batch, N heads, I query rows, J keys, P columns of the position table. The kernels are in
``csrc/cpu/masked_softmax_rows.h``; they take fp32, bf16 and fp16, compute in fp32, give the same
bits on any number of threads and need O(J) memory a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xlnet_fast import _extension
from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.kernels.cpu.addresses import DTYPES, Addresses
from xlnet_fast.kernels.cpu.instruction_sets import instruction_set
from xlnet_fast.masks import AttentionMask
from xlnet_fast.philox import keep_threshold


def masked_softmax_forward(
    scores: Tensor,
    position_scores: Tensor | None,
    segment_scores: Tensor | None,
    segments_q: Tensor | None,
    segments_k: Tensor | None,
    mask: AttentionMask,
    positions: Tensor | None,
    memory_length: int,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
    out: Tensor,
) -> None:
    """Fill ``out`` (B, N, I, J); see ``ops.masked_softmax``.

    Raises:
        ArgumentError, ShapeError: what memory would not survive; a public op checks it before.
    """
    memory = Addresses()
    arguments = _arguments(
        memory, scores, position_scores, segment_scores, segments_q, segments_k,
        mask, positions, memory_length, scale, dropout_p, seed,
    )  # fmt: skip
    _check_like("out", out, scores)
    arguments["out"] = memory.output(out)
    _extension.require().masked_softmax_forward(
        arguments, torch.get_num_threads(), instruction_set()
    )
    memory.write_back()


def masked_softmax_backward(
    grad_out: Tensor,
    out: Tensor,
    scores: Tensor,
    position_scores: Tensor | None,
    segment_scores: Tensor | None,
    segments_q: Tensor | None,
    segments_k: Tensor | None,
    mask: AttentionMask,
    positions: Tensor | None,
    memory_length: int,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
    grads: Sequence[Tensor],
) -> None:
    """Fill ``grads``, shaped like scores, position_scores and segment_scores (empty where None).

    The probabilities are computed again, unless ``out`` has them in fp32 and undropped. Always
    deterministic.

    Raises:
        ArgumentError, ShapeError: as ``masked_softmax_forward``.
    """
    memory = Addresses()
    arguments = _arguments(
        memory, scores, position_scores, segment_scores, segments_q, segments_k,
        mask, positions, memory_length, scale, dropout_p, seed,
    )  # fmt: skip
    _check_like("out", out, scores)
    _check_like("grad_out", grad_out, scores)
    arguments["out"], arguments["d_out"] = memory.view(out), memory.view(grad_out)
    likes = {
        "scores": scores, "position_scores": position_scores, "segment_scores": segment_scores
    }  # fmt: skip
    for (name, like), grad in zip(likes.items(), grads, strict=True):
        if like is not None:
            _check_like(f"the gradient of {name}", grad, like)
            arguments[f"d_{name}"] = memory.output(grad)
    _extension.require().masked_softmax_backward(
        arguments, torch.get_num_threads(), instruction_set()
    )
    memory.write_back()


def _arguments(
    memory: Addresses,
    scores: Tensor,
    position_scores: Tensor | None,
    segment_scores: Tensor | None,
    segments_q: Tensor | None,
    segments_k: Tensor | None,
    mask: AttentionMask,
    positions: Tensor | None,
    memory_length: int,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
) -> dict[str, Any]:
    """Fields of ``MaskedSoftmaxParams`` in csrc/params.h, but for the outputs."""
    _check(scores, position_scores, segment_scores, segments_q, segments_k, positions)
    batch, heads, rows, keys = scores.shape
    mask.validate(batch, rows, keys)
    if not 0 <= memory_length <= keys:
        raise ArgumentError(f"memory_length is {memory_length}, expected 0 to J = {keys}")
    if dropout_p > 0.0 and seed is None:
        raise ArgumentError(f"dropout_p is {dropout_p} and needs a seed of one int64")
    bits = mask.bits
    return {
        "dtype": DTYPES[scores.dtype],
        "batch": batch, "heads": heads, "rows": rows, "keys": keys, "memory": memory_length,
        "table": 0 if position_scores is None else position_scores.shape[3],
        "scores": memory.view(scores),
        "position_scores": memory.view(position_scores),
        "segment_scores": memory.view(segment_scores),
        "segments_q": memory.integers("segments_q", segments_q),
        "segments_k": memory.integers("segments_k", segments_k),
        "positions": memory.integers("positions", positions),
        "key_padding": memory.flat(mask.key_padding),
        "rank_q": memory.integers("mask.rank_q", mask.rank_q),
        "rank_k": memory.integers("mask.rank_k", mask.rank_k),
        "bits": memory.flat(bits),
        "bits_batch_stride": 0 if bits is None or bits.shape[0] == 1 else bits[0].numel(),
        "causal": mask.causal, "same_length": mask.same_length, "see_self": mask.see_self,
        "scale": scale,
        "keep_scale": 1.0 / (1.0 - dropout_p),
        "keep_from": keep_threshold(dropout_p),
        "seed": 0 if seed is None else int(seed) % 2**64,
        "dropout": dropout_p > 0.0,
    }  # fmt: skip


def _check(
    scores: Tensor,
    position_scores: Tensor | None,
    segment_scores: Tensor | None,
    segments_q: Tensor | None,
    segments_k: Tensor | None,
    positions: Tensor | None,
) -> None:
    """What a caller past the public op could get wrong and memory would not survive."""
    if scores.dtype not in DTYPES:
        raise ArgumentError(f"backend cpu takes float32, bfloat16 and float16, not {scores.dtype}")
    if scores.dim() != 4:
        raise ShapeError(f"scores has shape {tuple(scores.shape)}, expected (B, N, I, J)")
    segments = (segment_scores, segments_q, segments_k)
    if len({x is None for x in segments}) != 1:
        raise ArgumentError("segment_scores, segments_q and segments_k: give all three or none")
    batch, heads, rows, keys = scores.shape
    width = position_scores.shape[-1] if position_scores is not None else 0
    floats = {
        "position_scores": (position_scores, (batch, heads, rows, width)),
        "segment_scores": (segment_scores, (batch, heads, rows)),
    }
    integers = {
        "segments_q": (segments_q, (batch, rows)), "segments_k": (segments_k, (batch, keys)),
        "positions": (positions, (batch, rows)),
    }  # fmt: skip
    for name, (x, shape) in {**floats, **integers}.items():
        if x is None:
            continue
        if tuple(x.shape) != shape:
            raise ShapeError(f"{name} has shape {tuple(x.shape)}, expected {shape}")
        if x.device.type != "cpu":
            raise ArgumentError(f"{name} is on {x.device}, expected the CPU")
        if name in floats and x.dtype != scores.dtype:
            raise ArgumentError(f"{name} has dtype {x.dtype}, expected {scores.dtype} as scores")


def _check_like(name: str, x: Tensor, like: Tensor) -> None:
    """``x`` is as large as ``like``, of its dtype, on the CPU."""
    if x.shape != like.shape:
        raise ShapeError(f"{name} has shape {tuple(x.shape)}, expected {tuple(like.shape)}")
    if x.dtype != like.dtype:
        raise ArgumentError(f"{name} has dtype {x.dtype}, expected {like.dtype}")
    if x.device.type != "cpu":
        raise ArgumentError(f"{name} is on {x.device}, expected the CPU")
