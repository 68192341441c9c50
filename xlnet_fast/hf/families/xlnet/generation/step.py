"""One step of generation: the new tokens of each text, and the row that predicts the next one.

Hugging Face feeds a dummy token in the place of the next one, which no row sees. Here there is
none: its query row alone stands behind the tokens. Rows of earlier steps are frozen, so that
nothing of them is computed again.

Letters: B batch, I new tokens, M frozen rows, J = M + I keys, R rows of a pass, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xlnet_fast.hf.families.xlnet import inputs
from xlnet_fast.hf.families.xlnet.generation.distances import DistanceTable
from xlnet_fast.hf.families.xlnet.generation.parts import LayerParts, Parts
from xlnet_fast.hf.families.xlnet.generation.slots import Slots
from xlnet_fast.masks import AttentionMask
from xlnet_fast.ops import rel_attention
from xlnet_fast.ops.cached_attention import cached_attention
from xlnet_fast.ops.linear import linear

FEW_TOKENS = 8
"""So many attend together with the query row, by the op for few rows."""


@dataclass(frozen=True)
class Frozen:
    """Rows that never change again: of ``slots`` those from ``start`` to ``end``, or a memory.

    Attributes:
        padding: (B, M) bool, True for padding, or None.
        tip: what wrote the last rows; if that of the slots is another, others wrote since.
        memory: (M, B, H) inputs of each layer that have no keys and values yet.
    """

    slots: Slots | None = None
    start: int = 0
    end: int = 0
    padding: Tensor | None = None
    tip: object = None
    memory: tuple[Tensor, ...] | None = None

    @property
    def length(self) -> int:
        """M."""
        return self.end - self.start

    def has_room(self, count: int) -> bool:
        """Whether so many rows can be written behind these, where they are."""
        slots = self.slots
        if slots is None or self.tip is not slots.tip:
            return False
        # What `torch.inference_mode` made cannot be written to outside of it.
        writable = torch.is_inference_mode_enabled() or not slots.keys.is_inference()
        return writable and self.end + count <= slots.capacity

    def inputs(self) -> tuple[Tensor, ...]:
        """(M, B, H) for each layer; none where no row is frozen."""
        if self.memory is not None:
            return self.memory
        if self.slots is None or self.slots.inputs is None:
            return ()
        return tuple(self.slots.inputs[:, self.start : self.end])


@dataclass(frozen=True)
class Step:
    """What one step is to compute.

    Attributes:
        parts: of the model. table: of its distances. frozen: what was before.
        ids: (B, I) tokens. padding: (B, I) bool, True for padding, or None.
        remembers: whether the inputs of the layers are kept, which Hugging Face's memory is.
        told: tokens of the text that was read before this step, as far as they are known.
        read: (B, M) the tokens of the frozen rows, where they are known; of a step ``alone`` (B, M
            and more) those of rows that are forgotten as well, -1 for padding.
        drafts: tokens that may follow, whose steps are computed with this one.
        done: the result, where it was computed with an earlier step (:class:`.ahead.Ahead`).
        alone: whether nobody keeps the states before, so that rows may be moved in place.
        together: how many of the frozen rows the prompt's step computed, each of which depends on
            the whole prompt.
    """

    parts: Parts
    table: DistanceTable
    frozen: Frozen
    ids: Tensor
    padding: Tensor | None = None
    remembers: bool = True
    told: int = 0
    read: Tensor | None = None
    drafts: tuple[int, ...] = ()
    done: Any = None
    alone: bool = False
    together: int = 0

    def renewed(self, parts: Parts) -> Step:
        """The same step with parts of other values: the memory stays, as Hugging Face's does."""
        memory = tuple(layer.clone() for layer in self.frozen.inputs())
        frozen = Frozen(end=self.frozen.length, padding=self.frozen.padding, memory=memory)
        if not self.frozen.length:
            frozen = Frozen()
        return Step(parts, DistanceTable(parts), frozen, self.ids, self.padding, told=self.told)

    def as_arguments(self) -> dict[str, Any]:
        """What Hugging Face's forward is given for the same step."""
        batch, length = self.ids.shape
        dummy = self.ids.new_zeros(batch, 1)
        perm_mask = torch.zeros(batch, length + 1, length + 1, device=self.ids.device)
        perm_mask[:, :, -1] = 1.0
        target_mapping = torch.zeros(batch, 1, length + 1, device=self.ids.device)
        target_mapping[:, 0, -1] = 1.0
        arguments: dict[str, Any] = {
            "input_ids": torch.cat([self.ids, dummy], dim=1),
            "perm_mask": perm_mask,
            "target_mapping": target_mapping,
        }
        memory = self.frozen.inputs()
        if memory:
            arguments["mems"] = memory
        padding = self.all_padding()
        if padding is not None:
            arguments["attention_mask"] = F.pad(~padding, (0, 1), value=True).float()
        return arguments

    def all_padding(self) -> Tensor | None:
        """(B, J) bool, or None."""
        frozen, current = self.frozen.padding, self.padding
        if frozen is None and current is None:
            return None
        batch, length = self.ids.shape
        if frozen is None:
            frozen = self.ids.new_zeros(batch, self.frozen.length, dtype=torch.bool)
        if current is None:
            current = self.ids.new_zeros(batch, length, dtype=torch.bool)
        return torch.cat([frozen, current], dim=1)


@dataclass(frozen=True)
class Ran:
    """Where the rows of a step are now: ``slots`` from ``start``, frozen to ``end``, new behind."""

    slots: Slots
    start: int
    end: int
    tip: object


def run(step: Step) -> tuple[Tensor, Ran]:
    """Compute a step.

    Returns:
        (1, B, H) the query row after the last layer, and where the new rows are.

    Raises:
        ShapeError, ArgumentError, IndexError: ids or a memory that do not fit the model.
    """
    parts = step.parts
    h = inputs.embed_tokens(parts.embedding, step.ids)  # (I, B, H)
    ran = room_for(step, h)
    count, frozen = h.shape[0], ran.end - ran.start
    step.table.reach(frozen + count, count - 1)
    attend = _Attention(step, ran, count)
    rows = torch.cat([h, parts.mask_embedding.expand(1, h.shape[1], -1)])  # (I + 1, B, H)
    for number, layer in enumerate(parts.layers):
        content = rows[:count]
        k, v = (project(content, weight, parts) for weight in (layer.k, layer.v))
        ran.slots.put(number, ran.end, k, v, content)
        if number == len(parts.layers) - 1:
            rows = rows[count:]  # of the last layer nothing but the prediction is wanted
        vectors = attend(number, project(rows, layer.q, parts))
        rows = after_attention(layer, vectors, rows)
    return rows, ran


def room_for(step: Step, h: Tensor) -> Ran:
    """Slots with room for the rows h (I, B, H), that nobody else writes to.

    Of h no more than the shape is needed, unless there is a memory without keys and values.
    """
    parts, frozen = step.parts, step.frozen
    count, batch = h.shape[:2]
    tip = object()
    if frozen.memory is not None:
        slots, length = _of_memory(step, h)
        ran = Ran(slots, 0, length, tip)
    elif frozen.slots is None:
        ran = Ran(Slots(parts, batch, count, step.remembers), 0, 0, tip)
    elif frozen.has_room(count):
        ran = Ran(frozen.slots, frozen.start, frozen.end, tip)
    else:
        rows = frozen.length + count
        slots = frozen.slots.moved(parts, frozen.start, frozen.end, rows)
        ran = Ran(slots, 0, frozen.length, tip)
    ran.slots.tip = tip
    return ran


def _of_memory(step: Step, h: Tensor) -> tuple[Slots, int]:
    """Slots with the keys and values of a memory, and its length."""
    parts = step.parts
    memory, length = inputs.check_mems(step.frozen.memory, len(parts.layers), h)
    slots = Slots(parts, h.shape[1], length + len(h), with_inputs=True)
    for number, (layer, rows) in enumerate(zip(parts.layers, memory or (), strict=False)):
        rows = rows.to(h.dtype)
        k, v = (project(rows, weight, parts) for weight in (layer.k, layer.v))
        slots.put(number, 0, k, v, rows)
    return slots, length


class _Attention:
    """The attention of one step: what the layers share is made once."""

    def __init__(self, step: Step, ran: Ran, count: int) -> None:
        self.step, self.ran, self.count = step, ran, count
        self.frozen = ran.end - ran.start
        self.padding = step.all_padding()
        causal = step.parts.attn_type == "uni"
        self.mask = AttentionMask(key_padding=self.padding, causal=causal, see_self=True)
        self.hidden = None
        if count <= FEW_TOKENS and (self.padding is not None or (causal and count > 1)):
            self.hidden = self.__hidden(causal)

    def __call__(self, layer: int, q: Tensor) -> Tensor:
        """(R, B, N, D) of projected rows: all of them, or in the last layer the query row alone."""
        if len(q) <= FEW_TOKENS + 1:
            hidden = self.hidden
            if hidden is None and self.padding is not None:
                hidden = self.padding[:, None]
            elif hidden is not None:
                hidden = hidden[:, -len(q) :]
            return self.__few(layer, q, hidden)
        query = None if self.padding is None else self.padding[:, None]
        content = self.__many(layer, q[:-1])
        return torch.cat([content, self.__few(layer, q[-1:], query)])

    def __few(self, layer: int, q: Tensor, hidden: Tensor | None) -> Tensor:
        """The last rows."""
        parts, table = self.step.parts, self.step.table
        keys, values = self.__seen(layer)
        at = self.frozen + self.count + 1 - len(q)
        return cached_attention(
            q, keys, values, table.layers[layer], parts.layers[layer].r_w_bias,
            parts.layers[layer].r_r_bias, far=table.far, rows_at=at, hidden=hidden,
            scale=parts.layers[layer].scale,
        )  # fmt: skip

    def __many(self, layer: int, q: Tensor) -> Tensor:
        """The content rows of a prompt, (I, B, N, D)."""
        parts, table = self.step.parts, self.step.table
        keys, values = self.__seen(layer)
        farthest = self.frozen + self.count  # distances J to 1 - I
        first = table.far - farthest
        r = table.layers[layer][:, first : first + farthest + self.count]
        return rel_attention(
            q.transpose(0, 1),
            keys.transpose(1, 2),
            values.transpose(1, 2),
            r.transpose(0, 1)[None],
            parts.layers[layer].r_w_bias,
            parts.layers[layer].r_r_bias,
            mask=self.mask,
            scale=parts.layers[layer].scale,
        ).transpose(0, 1)

    def __seen(self, layer: int) -> tuple[Tensor, Tensor]:
        """(B, N, J, D) keys and values."""
        start, end = self.ran.start, self.ran.end + self.count
        slots = self.ran.slots
        return slots.keys[layer][:, :, start:end], slots.values[layer][:, :, start:end]

    def __hidden(self, causal: bool) -> Tensor:
        """(B or 1, I + 1, J) bool: padding, what comes later in a causal model; never oneself."""
        device, keys = self.step.ids.device, self.frozen + self.count
        row = torch.arange(self.frozen, keys + 1, device=device)[:, None]
        key = torch.arange(keys, device=device)
        hidden = (key > row)[None] if causal else (key > keys).expand(1, self.count + 1, -1)
        if self.padding is not None:
            hidden = (hidden | self.padding[:, None]) & (key != row)
        return hidden


def project(x: Tensor, weight: Tensor, parts: Parts) -> Tensor:
    """(R, B, H) to (R, B, N, D)."""
    return linear(x, weight).unflatten(-1, parts.heads)


def after_attention(layer: LayerParts, vectors: Tensor, rows: Tensor) -> Tensor:
    """(R, B, N, D) vectors of ``rows`` (R, B, H) to the layer's output."""
    norm = layer.norm
    x = linear(vectors.flatten(2), layer.o, residual=rows)
    x = F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    output: Tensor = layer.feed_forward(x)
    return output
