"""How much each token of a record counts for its answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError, NotFinite
from xlnet_fast.predict.pieces import TOKEN_BUDGET, Encoded
from xlnet_fast.predict.tasks.base import Part, Task

GRADIENT, INTEGRATED = METHODS = ("gradient_x_input", "integrated_gradients")
STEPS = 64
"""Of the integral."""

Scored = tuple[Tensor, dict[str, float]]


def attributions(
    task: Task, encoded: Encoded, results: Sequence[Any], method: str, target: str | int | None
) -> dict[str, Any]:
    """See :meth:`Predictor.attributions`.

    Args:
        results: of the record's pieces.
    """
    if method not in METHODS:
        raise ArgumentError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    what, parts = task.explained(encoded, results, target)
    limit = task.reading.max_length
    if any(len(part.piece) > limit for part in parts):
        raise ArgumentError(
            f"the record is longer than max_length {limit} and is read through memory, which has "
            "no gradients: to explain it, long must be 'window' or 'truncate'"
        )
    explain = _gradient_x_input if method == GRADIENT else _integrated_gradients
    scores: dict[tuple[str, int, int, str, int], float] = {}
    totals: dict[str, float] = {}
    for part in parts:
        found, values = explain(task, part)
        if not found.isfinite().all():
            raise NotFinite("the gradients of the answer are no numbers")
        for name, value in values.items():
            totals[name] = totals.get(name, 0.0) + part.weight * value
        words = task.tokenizer.convert_ids_to_tokens(list(part.piece.input_ids))
        places = task.tokens(encoded, part.piece)
        seen: Counter[tuple[Any, ...]] = Counter()
        for place, word, score in zip(places, words, found.tolist(), strict=True):
            # Tokens of several windows are one; those that look the same in one window are not.
            key = (*place, word, seen[place, word])
            seen[place, word] += 1
            scores[key] = scores.get(key, 0.0) + part.weight * score
    # What only later windows have came last.
    fields = list(dict.fromkeys(key[0] for key in scores))
    ordered = sorted(scores, key=lambda key: (fields.index(key[0]), key[1], key[2]))
    tokens = [
        {"token": key[3], "field": key[0], "begin": key[1], "end": key[2], "score": scores[key]}
        for key in ordered
    ]
    return {**what, "method": method, **totals, "tokens": tokens}


def _inputs(task: Task, part: Part) -> tuple[Tensor, dict[str, Tensor]]:
    """The ids of a piece, (1, L), and its other inputs."""
    batch = task.side_by_side([part.piece])
    return batch.pop("input_ids"), batch


def _gradient_x_input(task: Task, part: Part) -> Scored:
    """Of each token, (L,): its embedding times the value's gradient at it."""
    ids, inputs = _inputs(task, part)
    embeddings = task.transformer.word_embedding(ids).detach().requires_grad_()
    with torch.enable_grad():
        value = part.value(embeddings, inputs)
        (gradient,) = torch.autograd.grad(value.sum(), embeddings)
    scores = (gradient * embeddings.detach()).float().sum(-1)[0]
    return scores.cpu(), {"value": value.item()}


def _integrated_gradients(task: Task, part: Part) -> Scored:
    """Of each token, (L,), by captum; they sum up to the value less the one of the baseline.

    The baseline is the text with <pad> in the place of every token but <sep> and <cls>.
    """
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise ArgumentError(
            f"method {INTEGRATED!r} needs captum, which is not installed: pip install captum"
        ) from error
    ids, inputs = _inputs(task, part)
    ends = (ids == task.tokenizer.sep_token_id) | (ids == task.tokenizer.cls_token_id)
    table = task.transformer.word_embedding
    embeddings = table(ids).detach()
    baseline = table(torch.where(ends, ids, task.tokenizer.pad_token_id)).detach()

    def forward(steps: Tensor) -> Tensor:
        repeated = {name: x.repeat(len(steps), 1) for name, x in inputs.items()}
        return part.value(steps, repeated)

    at_once = max(1, TOKEN_BUDGET // ids.shape[1])
    with torch.enable_grad():
        found = IntegratedGradients(forward).attribute(
            embeddings, baselines=baseline, n_steps=STEPS, internal_batch_size=at_once
        )
    with torch.no_grad():
        value, zero = (forward(x).item() for x in (embeddings, baseline))
    scores = found.float().sum(-1)[0]
    return scores.cpu(), {"value": value, "baseline_value": zero}
