"""HF's own result of a relative attention case, computed part by part so that any size fits.

Batch elements and heads do not meet in attention: outputs and gradients of q, k and v of parts
stand side by side, gradients of what elements share (r, biases, segment embedding) add up. So the
float64 result of 8,192 positions needs the memory of one head of one element.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

import torch
from torch import Tensor

from ..cases.rel_attention import (
    DTYPES,
    FORWARD,
    FORWARD_BACKWARD,
    LEAVES,
    RelAttentionCase,
    RelAttentionInputs,
    make_inputs,
)
from .rel_attention import HF_EAGER, prepare

# Scores of one part, of which HF keeps about a dozen copies in float64: 1 GiB each on a GPU.
MAX_SCORES = {"cuda": 2**27, "cpu": 2**24}
_PER_ELEMENT = ("q", "k", "v", "grad_out")
_SHARED = ("r", "r_w_bias", "r_r_bias", "r_s_bias", "seg_embed")


def hf_result(
    case: RelAttentionCase, dtype: torch.dtype | None = None, max_scores: int | None = None
) -> list[Tensor]:
    """Return [out], or [out, *gradients] with a backward, in the package's layout.

    dtype: float64 for the exact result; the case's own for the yardstick. Dropout is left out.
    max_scores: B N I J of one part at most, one head of one element at least; by default what
        suits the device. Shared gradients are summed over parts in float64 and rounded once.
    """
    dtype = dtype or DTYPES[case.dtype]
    if max_scores is None:
        max_scores = MAX_SCORES["cuda" if torch.device(case.device).type == "cuda" else "cpu"]
    pass_name = FORWARD_BACKWARD if case.backward else FORWARD
    case = replace(case, pass_name=pass_name, dropout=0.0)
    whole = make_inputs(case, dtype)
    total: list[Tensor] = []
    for elements, heads in _parts(case, max_scores):
        results = _part_result(case, _take(whole, elements, heads))
        if not total:
            total = _empty_results(case, whole)
        for number, (into, part) in enumerate(zip(total, results, strict=True)):
            if number < 4:  # out and the gradients of q, k and v
                into[elements, :, heads] = part.detach()
            else:
                into[..., heads, :] += part.detach().double()
    return [x if number < 4 else x.to(dtype) for number, x in enumerate(total)]


def _parts(case: RelAttentionCase, max_scores: int) -> Iterator[tuple[slice, slice]]:
    per_head = case.queries * case.keys
    heads = max(1, min(case.heads, max_scores // per_head))
    elements = max(1, min(case.batch, max_scores // (per_head * heads)))
    for b in range(0, case.batch, elements):
        for n in range(0, case.heads, heads):
            yield slice(b, min(b + elements, case.batch)), slice(n, min(n + heads, case.heads))


def _take(whole: RelAttentionInputs, elements: slice, heads: slice) -> RelAttentionInputs:
    """Return the inputs of some batch elements and heads, leaves of their own."""
    values = {field.name: getattr(whole, field.name) for field in fields(whole)}
    for name in (*_PER_ELEMENT, *_SHARED):
        x = values[name]
        part = x[elements, :, heads] if name in _PER_ELEMENT else x[..., heads, :]
        values[name] = part.detach().contiguous().requires_grad_(x.requires_grad)
    for name in ("segments_q", "segments_k", "key_padding"):
        if values[name] is not None:
            values[name] = values[name][elements]
    for name in ("hf_mask", "hf_segments"):  # (I, J, B, ...)
        if values[name] is not None:
            values[name] = values[name][:, :, elements]
    return RelAttentionInputs(**values)


def _part_result(case: RelAttentionCase, inputs: RelAttentionInputs) -> list[Tensor]:
    part = replace(case, batch=inputs.q.shape[0], heads=inputs.q.shape[2])
    prepared = prepare(HF_EAGER, part, inputs)
    return prepared.standard(prepared.run())


def _empty_results(case: RelAttentionCase, whole: RelAttentionInputs) -> list[Tensor]:
    results = [torch.zeros_like(whole.q, requires_grad=False)]
    if case.backward:
        for name, leaf in zip(LEAVES, whole.leaves(), strict=False):
            dtype = leaf.dtype if name in _PER_ELEMENT else torch.float64
            results.append(torch.zeros_like(leaf, dtype=dtype, requires_grad=False))
    return results
