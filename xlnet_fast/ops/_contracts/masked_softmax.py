"""torch.library contract of masked_softmax."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from xlnet_fast import reference
from xlnet_fast.errors import BackendUnavailable
from xlnet_fast.kernels.cpu import masked_softmax as cpu_softmax
from xlnet_fast.kernels.cuda import masked_softmax as cuda_softmax
from xlnet_fast.kernels.sdpa import masked_softmax as sdpa_softmax
from xlnet_fast.operands import SoftmaxInputs
from xlnet_fast.ops._contracts._registry import (
    LIBRARY,
    SOFTMAX_PARTS,
    Differentiable,
    launch,
    parts_of,
    register_differentiable,
)
from xlnet_fast.ops._validation import check_positions

_SOFTMAX = (
    "Tensor scores, Tensor? position_scores, Tensor? segment_scores, "
    f"Tensor? segments_q, Tensor? segments_k, {SOFTMAX_PARTS}, str backend"
)

LIBRARY.define(f"masked_softmax({_SOFTMAX}) -> Tensor")
LIBRARY.define(
    f"masked_softmax_backward(Tensor grad_out, Tensor out, {_SOFTMAX}) -> (Tensor, Tensor, Tensor)"
)


def _inputs(scores: Tensor, args: Sequence[Any]) -> SoftmaxInputs:
    """From the schema's arguments, ``args`` being those after ``scores``."""
    mask, positions, seed, (memory_length, *numbers) = parts_of(args[4:])
    if positions is None:  # a traced program keeps the number it was traced with
        memory_length = scores.shape[3] - scores.shape[2]
    fields = (*args[:4], mask, positions, memory_length, *numbers, seed)
    return SoftmaxInputs(scores, *fields)


def _kernels(backend: str) -> ModuleType:
    """The module that has the kernels of a backend."""
    if backend == "sdpa":
        return sdpa_softmax
    if backend == "cpu":
        return cpu_softmax
    if backend == "triton":
        from xlnet_fast.kernels.triton import masked_softmax as triton_softmax

        return triton_softmax
    if backend == "cuda":
        return cuda_softmax
    raise BackendUnavailable(f"no registered backend {backend!r} of masked_softmax")


def _masked_softmax(scores: Tensor, *args: Any) -> Tensor:
    out = torch.empty_like(scores, memory_format=torch.contiguous_format)
    inputs = _inputs(scores, args)
    check_positions(inputs.positions, inputs.current)
    if scores.numel():
        launch(args[-1], lambda name: _kernels(name).masked_softmax_forward(inputs, out))
    return out


def _contiguous_grads(inputs: SoftmaxInputs) -> tuple[Tensor, ...]:
    """Of the three scores, an empty one for None, whatever the strides of the scores are."""
    return tuple(inputs.scores.new_empty(0 if x is None else x.shape) for x in inputs.terms)


def _masked_softmax_backward(
    grad_out: Tensor, out: Tensor, scores: Tensor, *args: Any
) -> tuple[Tensor, ...]:
    inputs = _inputs(scores, args)
    grads = _contiguous_grads(inputs)
    if scores.numel() == 0:
        return tuple(grad.zero_() for grad in grads)
    arguments = (inputs, out, grad_out, grads)
    launch(args[-1], lambda name: _kernels(name).masked_softmax_backward(*arguments))
    return grads


def _plain(scores: Tensor, *args: Any) -> tuple[Tensor]:
    """The op in PyTorch's own code, which has all derivatives."""
    x = _inputs(scores, args)
    out = reference.masked_softmax(
        scores, position_scores=x.position_scores, segment_scores=x.segment_scores,
        segments_q=x.segments_q, segments_k=x.segments_k, mask=x.mask, positions=x.positions,
        memory_length=x.memory_length, scale=x.scale, dropout_p=x.dropout_p, seed=x.seed,
    )  # fmt: skip
    return (out,)


register_differentiable(
    Differentiable("masked_softmax", _masked_softmax, _masked_softmax_backward, _plain),
    lambda scores, *args: torch.empty_like(scores, memory_format=torch.contiguous_format),
    lambda grad, out, scores, *args: _contiguous_grads(_inputs(scores, args)),
)
