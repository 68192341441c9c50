"""Several steps of one text in one pass: drafted tokens are checked, those that hold are kept.

At step i, behind the frozen rows, Hugging Face computes the older of two tokens (at position i),
the newer (i + 1) and the query row (i + 2). All three see the frozen rows, the older copies up to
their own, and of the newer copies their own alone. So the rows of all steps can be computed
together, each seeing what it would have seen.

Letters: S steps, M frozen rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xlnet_fast.hf.families.xlnet import inputs
from xlnet_fast.hf.families.xlnet.generation.parts import Parts
from xlnet_fast.hf.families.xlnet.generation.state import GenerationState, frozen_after
from xlnet_fast.hf.families.xlnet.generation.step import (
    Frozen,
    Ran,
    Step,
    after_attention,
    project,
    room_for,
)
from xlnet_fast.ops.cached_attention import cached_attention

Mems = Callable[[Step], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Ahead:
    """A step that was computed for the case that a token is chosen.

    Attributes:
        token: that token. logits: (1, 1, V) of the next one. state: after the step.
    """

    token: int
    logits: Tensor
    state: GenerationState


def can_run_ahead(parts: Parts) -> bool:
    """Whether each step freezes one row more, as all do that remember at least two tokens."""
    return (parts.mem_len == 0 or parts.mem_len >= 2) and (
        parts.reuse_len == 0 or parts.reuse_len >= 3
    )


def run_ahead(
    step: Step,
    drafts: Sequence[int],
    to_logits: Callable[[Tensor], Tensor],
    to_mems: Mems,
) -> tuple[Tensor, GenerationState]:
    """Compute a step, and those after it as long as the drafts are what is chosen.

    Args:
        step: of one text, with two tokens. drafts: the tokens that may follow.
        to_logits: (S, 1, H) rows to (S, 1, V).

    Returns:
        (1, 1, V) logits and the state of the step, which has the others ahead.
    """
    tokens = torch.tensor([*step.ids[0].tolist(), *drafts], device=step.ids.device)
    steps = len(drafts) + 1
    copies = torch.cat([tokens[:-1], tokens[1:]])[None]  # older, newer
    h = inputs.embed_tokens(step.parts.embedding, copies)  # (2 S, 1, H)
    ran = room_for(step, h)
    rows = _rows(step, ran, h, steps)
    logits = to_logits(rows)
    states = _states(step, ran, tokens, steps, to_mems)
    for number in range(steps - 1, 0, -1):
        ahead = Ahead(int(tokens[number + 1]), logits[number : number + 1], states[number])
        states[number - 1].ahead = ahead
    return logits[:1], states[0]


def _rows(step: Step, ran: Ran, h: Tensor, steps: int) -> Tensor:
    """(S, 1, H) query rows after the last layer."""
    parts, table = step.parts, step.table
    frozen = ran.end - ran.start
    number = torch.arange(steps, device=h.device)
    table.reach(frozen + steps + 1, 1)
    rows_at = torch.cat([frozen + number, frozen + 1 + number, frozen + 2 + number])
    keys_at = torch.cat([torch.arange(frozen + steps, device=h.device), frozen + 1 + number])
    hidden = _hidden(step, ran, steps)
    count = 2 * steps
    x = torch.cat([h, parts.mask_embedding.expand(steps, 1, -1)])  # (3 S, 1, H)
    for layer, weights in enumerate(parts.layers):
        content = x[:count]
        k, v = (project(content, weight, parts) for weight in (weights.k, weights.v))
        ran.slots.put(layer, ran.end, k, v, content)
        if layer == len(parts.layers) - 1:
            x, rows_at, hidden = x[count:], rows_at[count:], hidden[:, count:]
        seen = slice(ran.start, ran.end + count)
        vectors = cached_attention(
            project(x, weights.q, parts),
            ran.slots.keys[layer][:, :, seen],
            ran.slots.values[layer][:, :, seen],
            table.layers[layer],
            weights.r_w_bias,
            weights.r_r_bias,
            far=table.far,
            rows_at=rows_at,
            keys_at=keys_at,
            hidden=hidden,
            scale=weights.scale,
        )
        x = after_attention(weights, vectors, x)
    return x


def _hidden(step: Step, ran: Ran, steps: int) -> Tensor:
    """(1, 3 S, M + 2 S) bool, for rows and keys in the order of :func:`_rows`."""
    device = step.ids.device
    frozen = ran.end - ran.start
    number = torch.arange(steps, device=device)[:, None]
    key = torch.arange(frozen + steps, device=device)
    first = torch.tensor([start - ran.start for start, _ in _frozen(step, ran, steps)])
    older = (key > frozen + number) | (key < first.to(device)[:, None])
    if step.frozen.padding is not None:
        older[:, :frozen] |= step.frozen.padding
    newer = number != number.T
    one = torch.cat([older, newer], dim=1)  # (S, M + 2 S)
    if step.parts.attn_type == "uni":
        blind = torch.cat([older, torch.ones_like(newer)], dim=1)
        return torch.cat([blind, one, one])[None]
    return torch.cat([one, one, one])[None]


def _frozen(step: Step, ran: Ran, steps: int) -> list[tuple[int, int]]:
    """Which rows are frozen before each step, in slots."""
    found = [(ran.start, ran.end)]
    while len(found) < steps:
        found.append(frozen_after(step.parts, *found[-1], 2))
    return found


def _states(
    step: Step, ran: Ran, tokens: Tensor, steps: int, to_mems: Mems
) -> list[GenerationState]:
    """The state after each step."""
    states = []
    padding = step.frozen.padding
    for number, (start, end) in enumerate(_frozen(step, ran, steps)):
        known = None
        if padding is not None:
            grown = torch.cat([padding, padding.new_zeros(1, steps)], dim=1)
            known = grown[:, start - ran.start : end - ran.start]
        taken = replace(
            step,
            frozen=Frozen(ran.slots, start, end, known, ran.tip),
            ids=tokens[None, number : number + 2],
            told=step.told + number,
        )
        states.append(GenerationState(taken, Ran(ran.slots, start, end, ran.tip), to_mems))
    return states
