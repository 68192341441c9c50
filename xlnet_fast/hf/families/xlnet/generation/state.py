"""What generation keeps from step to step, in the place of Hugging Face's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.hf.families.xlnet.generation.distances import DistanceTable
from xlnet_fast.hf.families.xlnet.generation.parts import Parts
from xlnet_fast.hf.families.xlnet.generation.step import Frozen, Ran, Step

_CUT = 2
"""Hugging Face feeds the last two tokens again; the memory's last two rows are the older of them
and the dummy."""


class GenerationState(Sequence[Tensor]):
    """The memory of a text being generated, with the keys and values that its steps made.

    ``generate`` hands it from step to step and returns it where Hugging Face returns ``mems``. To
    whoever looks into it, it is a tuple of one (M, B, H) tensor a layer, Hugging Face's ``mems``,
    computed at the first look (:func:`to_mems`).

    Attributes:
        ahead: the next step, if it was computed already (:class:`.ahead.Ahead`), or None.
    """

    def __init__(self, step: Step, ran: Ran, to_mems: Callable[[Step], tuple[Tensor, ...]]) -> None:
        self._step, self._ran, self._to_mems = step, ran, to_mems
        self._mems: tuple[Tensor, ...] | None = None
        self.ahead: Any = None

    @property
    def parts(self) -> Parts:
        """Of the model that made it."""
        return self._step.parts

    @property
    def batch(self) -> int:
        """B."""
        return self._step.ids.shape[0]

    def foreseen(self, ids: Tensor) -> Any:
        """The step that follows with ids (B, 2), if it was computed ahead, else None."""
        ahead = self.ahead
        if ahead is None or ids.tolist() != [[self._newest, ahead.token]]:
            return None
        return ahead

    @property
    def _newest(self) -> int:
        """The last token that was read, of a state of one text."""
        return int(self._step.ids[0, -1])

    @property
    def told(self) -> int:
        """How many tokens of the text were read: the prompt, and one a step."""
        step = self._step
        return step.told + 1 if step.told else step.ids.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept, beside the table of distances."""
        return self._ran.slots.nbytes

    def mems(self) -> tuple[Tensor, ...]:
        """(M, B, H) for each layer, as Hugging Face's forward returns it."""
        if self._mems is None:
            if not self.parts.are_as_before():
                raise ArgumentError(
                    "the model has changed since this state was made, and nobody looked at its "
                    "memory before: call xlnet_fast.to_mems(state) before the model changes "
                    "(weights, dtype, options, hooks, train())"
                )
            self._mems = self._to_mems(self._step)
        return self._mems

    def next(self, ids: Tensor, padding: Tensor | None) -> Step:
        """The step after this one.

        Args:
            ids: (B, I) the last two tokens. padding: (B, I) of them, or None.

        Raises:
            ShapeError: ids of another batch.
        """
        if ids.shape[0] != self.batch:
            raise ShapeError(f"input_ids has {ids.shape[0]} texts, but mems is of {self.batch}")
        step, ran = self._step, self._ran
        count = step.ids.shape[1]
        start, end = frozen_after(step.parts, ran.start, ran.end, count)
        seen = step.all_padding()
        frozen = Frozen(
            ran.slots, start, end,
            padding=None if seen is None else seen[:, start - ran.start : end - ran.start],
            # Of fewer rows than before, the others may be wanted by whoever holds this state.
            tip=ran.tip if end >= ran.end else None,
        )  # fmt: skip
        step.table.forget_beyond(_CUT)
        following = Step(step.parts, step.table, frozen, ids, padding, told=self.told)
        if not step.alone:
            return following
        gone, kept = start - ran.start, end - ran.start
        together = step.together if step.frozen.length else kept
        history = self.__history()
        return replace(
            following,
            alone=True,
            read=history[:, : history.shape[1] - (ran.end - ran.start + count) + kept],
            together=max(min(together, kept) - gone, 0),
        )

    def select(self, elements: Tensor) -> GenerationState:
        """The state of some elements of the batch, in this order, as beam search asks for."""
        if elements.device.type == "cpu" and elements.tolist() == list(range(self.batch)):
            return self
        step, ran, tip = self._step, self._ran, object()
        if step.alone:
            return self.__moved(elements.tolist())
        elements = elements.to(step.ids.device)
        slots = ran.slots.select(elements)
        slots.tip = tip
        frozen = step.frozen
        if frozen.memory is not None:
            memory = tuple(layer.index_select(1, elements) for layer in frozen.memory)
            frozen = replace(frozen, memory=memory)
        else:
            frozen = Frozen(slots, ran.start, ran.end, _selected(frozen.padding, elements), tip)
        step = replace(
            step,
            frozen=frozen,
            ids=step.ids.index_select(0, elements),
            padding=_selected(step.padding, elements),
        )
        return GenerationState(step, Ran(slots, ran.start, ran.end, tip), self._to_mems)

    def __history(self) -> Tensor:
        """(B, L) tokens of all rows that were ever frozen and of the new ones, -1 for padding."""
        step = self._step
        ids = step.ids if step.padding is None else step.ids.masked_fill(step.padding, -1)
        return ids if step.read is None else torch.cat([step.read, ids], dim=1)

    def __moved(self, order: list[int]) -> GenerationState:
        """The same in place: rows before the first token that differs are the same already."""
        step, ran = self._step, self._ran
        history, rows = self.__history(), ran.end - ran.start + step.ids.shape[1]
        differs = history != history[order]  # (B, L)
        targets = differs.any(1).nonzero().flatten().tolist()
        if targets:
            # A row depends on the token after it as well, and on those that are forgotten.
            different = int(differs[targets].int().argmax(1).min()) - 1
            first = max(different - (history.shape[1] - rows), 0)
            first = 0 if first < step.together else first
            sources = [order[target] for target in targets]
            ran.slots.move(sources, targets, ran.start + first, ran.start + rows)
        elements = torch.tensor(order, device=step.ids.device)
        step = replace(
            step,
            frozen=replace(step.frozen, padding=_selected(step.frozen.padding, elements)),
            ids=step.ids.index_select(0, elements),
            padding=_selected(step.padding, elements),
            read=_selected(step.read, elements),
        )
        return GenerationState(step, ran, self._to_mems)

    def __len__(self) -> int:
        return len(self.parts.layers)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Tensor, ...]: ...
    def __getitem__(self, index: Any) -> Any:
        return self.mems()[index]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.mems())

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles are the tuple."""
        return tuple, (self.mems(),)

    def __repr__(self) -> str:
        return f"GenerationState({len(self)} layers, {self.batch} texts)"


def to_mems(state: Any) -> tuple[Tensor, ...]:
    """Hugging Face's ``mems`` of a state that ``generate`` returned.

    Args:
        state: ``cache`` (``past_key_values`` before transformers 5.24) of what ``generate`` returns
            with ``return_dict_in_generate=True``, or ``mems`` already.

    Returns:
        One (M, B, H) tensor for each layer.

    Raises:
        ArgumentError: neither.
    """
    if isinstance(state, GenerationState):
        return state.mems()
    if isinstance(state, (tuple, list)) and all(isinstance(layer, Tensor) for layer in state):
        return tuple(state)
    raise ArgumentError(
        f"expected the state that generate(return_dict_in_generate=True) returns, got a "
        f"{type(state).__name__}"
    )


def frozen_after(parts: Parts, start: int, end: int, count: int) -> tuple[int, int]:
    """Which rows stay after a step of so many tokens: HF's ``cache_mem`` and the cut of two."""
    new = count + 1  # the dummy is remembered as well
    if parts.reuse_len > 0:
        new = min(new, parts.reuse_len)
    total = end - start + new
    kept = min(total, parts.mem_len) if parts.mem_len else total
    start += total - kept
    return start, start + max(kept - _CUT, 0)


def _selected(x: Tensor | None, elements: Tensor) -> Tensor | None:
    return None if x is None else x.index_select(0, elements)


@dataclass(frozen=True)
class ReadText:
    """What a run without memory has read: its tokens tell whether it is the same text.

    Attributes:
        step: the last one. ran: where its rows are. ids: (B, L) all tokens read.
        padding: (B, L) bool, or None.
    """

    step: Step
    ran: Ran
    ids: Tensor
    padding: Tensor | None

    @classmethod
    def after(cls, step: Step, ran: Ran) -> ReadText:
        """What was read once a step has run."""
        ids, padding, earlier = step.ids, step.padding, step.read
        if earlier is not None:
            ids = torch.cat([earlier, ids], dim=1)
            padding = step.all_padding()
        return cls(step, ran, ids, padding)

    def next(self, ids: Tensor, padding: Tensor | None) -> Step:
        """The step that reads what is new in ``ids`` (B, L)."""
        step = self.step
        if step.parts.attn_type == "bi":  # a new token changes every row: only room and table stay
            frozen = Frozen(self.ran.slots, 0, 0, tip=self.ran.slots.tip)
            if self.ran.slots.keys.shape[1] != len(ids):
                frozen = Frozen()
            return replace(step, frozen=frozen, ids=ids, padding=padding, read=None)
        order = self.__same_texts(ids, padding)
        if order is None:
            return replace(step, frozen=Frozen(), ids=ids, padding=padding, read=None)
        slots, tip = self.ran.slots, self.ran.tip
        if order:
            slots, tip = slots.select(torch.tensor(order, device=ids.device)), object()
            slots.tip = tip
        length = self.ids.shape[1]
        known = None if padding is None else padding[:, :length]
        frozen = Frozen(slots, self.ran.start, self.ran.start + length, known, tip)
        rest = None if padding is None else padding[:, length:]
        return replace(step, frozen=frozen, ids=ids[:, length:], padding=rest, read=ids[:, :length])

    def __same_texts(self, ids: Tensor, padding: Tensor | None) -> list[int] | None:
        """Which text each of ``ids`` continues; [] for each its own, None if one continues none."""
        length = self.ids.shape[1]
        if ids.shape[1] <= length or (padding is None) != (self.padding is None):
            return None
        read, now = self.ids, ids[:, :length]
        if padding is not None and self.padding is not None:
            read = torch.where(self.padding, -1, read)
            now = torch.where(padding[:, :length], -1, now)
        if read.shape == now.shape and torch.equal(read, now):
            return []
        same = (now[:, None] == read).all(2)  # (B, B read)
        if not bool(same.any(1).all()):
            return None
        order: list[int] = same.int().argmax(1).tolist()
        return order


def first_step(parts: Parts, ids: Tensor, padding: Tensor | None, *, remembers: bool) -> Step:
    """The step that reads a prompt.

    Args:
        ids: (B, I). padding: (B, I) bool, or None.
        remembers: whether a memory is wanted.
    """
    return Step(parts, DistanceTable(parts), Frozen(), ids, padding, remembers)


def begun_from(
    parts: Parts, ids: Tensor, padding: Tensor | None, memory: tuple[Tensor, ...], told: int
) -> Step:
    """The step that goes on from a memory which a user handed over.

    Args:
        ids: (B, I) the last tokens. padding: (B, L) bool of all the text, or None; where it is
            shorter than memory and ids together, the memory is of an earlier text without any.
        memory: (M, B, H) for each layer, without the rows of ids.
        told: tokens of the text without the last one.
    """
    length, count = len(memory[0]), ids.shape[1]
    frozen = Frozen()
    if length:
        known = None
        if padding is not None and padding.shape[1] >= length + count:
            known = padding[:, padding.shape[1] - length - count : padding.shape[1] - count]
        frozen = Frozen(end=length, padding=known, memory=memory)
    tail = None if padding is None else padding[:, padding.shape[1] - count :]
    return Step(parts, DistanceTable(parts), frozen, ids, tail, told=told)
