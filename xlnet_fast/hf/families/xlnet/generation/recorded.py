"""On a GPU: a step as one CUDA graph, recorded once and replayed for every token.

A step of the usual size launches some 25 kernels a layer, each of which computes for less time than
its launch takes. A graph launches them all at once. What changes from step to step (tokens, which
rows are frozen) lies in tensors on the device, and all shapes are those of the slots: rows that
hold nothing yet are hidden. Nothing waits for the device.

No GPU ran this yet. So each process compares its first recorded step with the same step computed
kernel by kernel, and records no more where they differ or recording fails; it says so. On a CPU the
tests run the same code under a recorder of their own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from xlnet_fast.errors import PerformanceWarning
from xlnet_fast.hf.families.xlnet.generation.distances import DistanceTable
from xlnet_fast.hf.families.xlnet.generation.slots import Slots
from xlnet_fast.hf.families.xlnet.generation.step import (
    Ran,
    Step,
    after_attention,
    project,
    room_for,
    run,
)
from xlnet_fast.ops.cached_attention import cached_attention

ToLogits = Callable[[Tensor], Tensor]

MOST_TOKENS = 2
"""New tokens of the steps that come again and again: two with memory, one without."""


class Recorder(Protocol):
    """What records the work of a function on fixed tensors, and does it again."""

    def record(self, function: Callable[[], None]) -> None:
        """Do it once at least, and keep it."""

    def replay(self) -> None:
        """Do it again."""


class CudaGraph:
    """PyTorch's CUDA graph, on a device that need not be the current one."""

    _WARM_UPS = 3  # libraries choose and allocate at their first calls

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._graph = torch.cuda.CUDAGraph()

    def record(self, function: Callable[[], None]) -> None:
        """As :class:`Recorder`; on a stream of its own, as capturing asks for."""
        with torch.cuda.device(self._device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(self._WARM_UPS):
                    function()
            torch.cuda.current_stream().wait_stream(stream)
            # Other threads may go on with the device meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                function()
        self.replay()  # capturing runs nothing

    def replay(self) -> None:
        """As :class:`Recorder`."""
        with torch.cuda.device(self._device):
            self._graph.replay()


def recorder_for(device: torch.device) -> Callable[[], Recorder] | None:
    """What makes a recorder for a device; None where launches cost nothing."""
    return partial(CudaGraph, device) if device.type == "cuda" else None


class RecordedStep:
    """A step of so many new tokens in these slots, whatever their rows hold.

    Attributes:
        ids: (B, I) int64 new tokens. first, end: (1,) int64, the frozen rows are between them.
        padding: (B, capacity) bool, True for padding.
        logits: (B, 1, V), of the last step.
    """

    def __init__(self, step: Step, slots: Slots, to_logits: ToLogits, recorder: Recorder) -> None:
        batch, self.count = step.ids.shape
        self._parts, self._to_logits = step.parts, to_logits
        # Not the slots, which have this: a circle would keep a GPU's memory until it is found.
        self._keys, self._values, self._inputs = slots.keys, slots.values, slots.inputs
        table = DistanceTable(step.parts)
        table.reach(slots.capacity + 1, self.count - 1)
        self._table, self._far = table.layers, table.far
        self.ids = torch.empty_like(step.ids)
        self.first, self.end = (step.ids.new_empty(1) for _ in range(2))
        self.padding = step.ids.new_empty(batch, slots.capacity, dtype=torch.bool)
        self._recorder = recorder
        self.logits: Tensor | None = None

    def run(self, step: Step, ran: Ran) -> Tensor:
        """(B, 1, V) logits of a step, whose rows come to their slots."""
        self.ids.copy_(step.ids)
        self.first.fill_(ran.start)
        self.end.fill_(ran.end)
        padding = step.all_padding()
        self.padding.zero_()
        if padding is not None:
            self.padding[:, ran.start : ran.end + self.count] = padding
        if self.logits is None:
            self._recorder.record(self.__compute)
        else:
            self._recorder.replay()
        assert self.logits is not None
        return self.logits.clone()

    def __compute(self) -> None:
        """All work of a step, on tensors that stay where they are."""
        parts, device = self._parts, self.ids.device
        number = torch.arange(self.count + 1, device=device)
        key = torch.arange(self.padding.shape[1], device=device)
        rows_at = self.end + number  # (I + 1,)
        hidden = ((key < self.first) | self.padding)[:, None].expand(-1, self.count + 1, -1)
        if parts.attn_type == "uni":
            hidden = hidden | (key > rows_at[:, None])
        hidden = hidden & (key != rows_at[:, None])  # oneself is seen, and nothing behind the new
        hidden = hidden | (key >= self.end + self.count)
        h = torch.nn.functional.embedding(self.ids.t(), parts.embedding.weight)
        rows = torch.cat([h, parts.mask_embedding.expand(1, h.shape[1], -1)])
        for layer, weights in enumerate(parts.layers):
            content = rows[: self.count]
            at = rows_at[: self.count]
            for name, slot in (("k", self._keys), ("v", self._values)):
                made = project(content, getattr(weights, name), parts)
                slot[layer].index_copy_(2, at, made.permute(1, 2, 0, 3))
            if self._inputs is not None:
                self._inputs[layer].index_copy_(0, at, content)
            seen, places = hidden, rows_at
            if layer == len(parts.layers) - 1:
                rows, seen, places = rows[self.count :], hidden[:, -1:], rows_at[-1:]
            vectors = cached_attention(
                project(rows, weights.q, parts),
                self._keys[layer],
                self._values[layer],
                self._table[layer],
                weights.r_w_bias,
                weights.r_r_bias,
                far=self._far,
                rows_at=places,
                hidden=seen,
                scale=weights.scale,
            )
            rows = after_attention(weights, vectors, rows)
        logits = self._to_logits(rows.transpose(0, 1))
        if self.logits is None:
            self.logits = torch.empty_like(logits)
        self.logits.copy_(logits)


def run_recorded(step: Step, to_logits: ToLogits) -> tuple[Tensor, Ran]:
    """A step, by its graph where it has one: not the prompt, and nothing on a CPU.

    Returns:
        (B, 1, V) logits, and where the new rows are.
    """
    slots, count = step.frozen.slots, step.ids.shape[1]
    found = None if slots is None else slots.recorded
    if isinstance(found, RecordedStep) and found.count == count and step.frozen.has_room(count):
        ran = room_for(step, step.ids.t())
        return found.run(step, ran), ran
    rows, ran = run(step)
    logits = to_logits(rows.transpose(0, 1))
    # Beam search moves the rows at each step: nothing stays where it was.
    if slots is not None and count <= MOST_TOKENS and not slots.selected:
        _record(step, ran, logits, to_logits)
    return logits, ran


def _record(step: Step, ran: Ran, logits: Tensor, to_logits: ToLogits) -> None:
    """Record a step that has just run, for those after it.

    What is recorded writes what was written, and has to give what was given.
    """
    device, kind = step.parts.device, (str(step.parts.device), step.parts.dtype)
    make_recorder = recorder_for(device)
    if make_recorder is None or _GIVES_THE_SAME.get(kind) is False:
        return
    try:
        recorded = RecordedStep(step, ran.slots, to_logits, make_recorder())
        again = recorded.run(step, ran)
    except RuntimeError as error:
        _GIVES_THE_SAME[kind] = False
        _warn(f"recording failed: {str(error).splitlines()[0]}")
        return
    if kind not in _GIVES_THE_SAME:
        most = float((again - logits).abs().max()) / float(logits.abs().max())
        _GIVES_THE_SAME[kind] = most <= torch.finfo(logits.dtype).eps ** 0.5
        if not _GIVES_THE_SAME[kind]:
            _warn(f"a recorded step was off by {most:.1e} of the largest logit")
            return
    ran.slots.recorded = recorded


_GIVES_THE_SAME: dict[tuple[str, torch.dtype], bool] = {}
"""By device and dtype: whether a recorded step gave what the kernels one by one did."""


def _warn(reason: str) -> None:
    warnings.warn(
        f"steps of generation are launched kernel by kernel, not as one CUDA graph: {reason}",
        PerformanceWarning,
        stacklevel=2,
    )
