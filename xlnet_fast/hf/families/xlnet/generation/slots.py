"""Room for the keys, values and inputs of all layers, row by row as texts grow."""

from __future__ import annotations

import torch
from torch import Tensor

from xlnet_fast.hf.families.xlnet.generation.parts import Parts

_LEAST_SPARE = 64
"""Rows that are allocated beyond those needed, at least; else a quarter of them."""
_LEAST_SPARE_RECORDED = 256
"""The same on a GPU, where steps are recorded anew for each allocation."""


class Slots:
    """Rows of keys, values and, where the memory is wanted, of the inputs of each layer.

    Attributes:
        keys, values: (layers, B, N, capacity, D). inputs: (layers, capacity, B, H), or None.
        tip: what wrote the last rows and may write behind them; others have to copy first.
        selected: whether beam search chose among texts: the next step may choose again.
        recorded: the step that was recorded on these tensors (:mod:`.recorded`), or None.
    """

    def __init__(self, parts: Parts, batch: int, rows: int, with_inputs: bool) -> None:
        heads, dim = parts.heads
        least = _LEAST_SPARE_RECORDED if parts.device.type == "cuda" else _LEAST_SPARE
        layers, capacity = len(parts.layers), rows + max(least, rows // 4)
        self.keys = torch.empty(
            layers, batch, heads, capacity, dim, dtype=parts.dtype, device=parts.device
        )
        self.values = torch.empty_like(self.keys)
        self.inputs = None
        if with_inputs:
            self.inputs = self.keys.new_empty(layers, capacity, batch, parts.hidden_size)
        self.tip: object = None
        self.selected = False
        self.recorded: object = None

    @property
    def capacity(self) -> int:
        """How many rows there is room for."""
        return self.keys.shape[3]

    @property
    def nbytes(self) -> int:
        """What is allocated."""
        inputs = 0 if self.inputs is None else self.inputs.nbytes
        return self.keys.nbytes + self.values.nbytes + inputs

    def moved(self, parts: Parts, start: int, end: int, rows: int) -> Slots:
        """A copy with room for so many rows, those from ``start`` to ``end`` at the front."""
        copy = Slots(parts, self.keys.shape[1], rows, self.inputs is not None)
        copy.selected = self.selected
        copy.keys[:, :, :, : end - start] = self.keys[:, :, :, start:end]
        copy.values[:, :, :, : end - start] = self.values[:, :, :, start:end]
        if self.inputs is not None and copy.inputs is not None:
            copy.inputs[:, : end - start] = self.inputs[:, start:end]
        return copy

    def put(self, layer: int, place: int, k: Tensor, v: Tensor, inputs: Tensor) -> None:
        """Rows of one layer from ``place`` on.

        Args:
            k, v: (rows, B, N, D). inputs: (rows, B, H), what they were made of.
        """
        end = place + len(k)
        self.keys[layer, :, :, place:end] = k.permute(1, 2, 0, 3)
        self.values[layer, :, :, place:end] = v.permute(1, 2, 0, 3)
        if self.inputs is not None:
            self.inputs[layer, place:end] = inputs

    def move(self, sources: list[int], targets: list[int], start: int, end: int) -> None:
        """Rows ``start`` to ``end`` of some texts to others, in place."""
        for slot in (self.keys, self.values):
            slot[:, targets, :, start:end] = slot[:, sources, :, start:end]
        if self.inputs is not None:
            self.inputs[:, start:end, targets] = self.inputs[:, start:end, sources]

    def select(self, elements: Tensor) -> Slots:
        """A copy for some elements of the batch, in this order."""
        copy = object.__new__(Slots)
        copy.keys = self.keys.index_select(1, elements)
        copy.values = self.values.index_select(1, elements)
        copy.inputs = None if self.inputs is None else self.inputs.index_select(2, elements)
        copy.tip, copy.selected, copy.recorded = None, True, None
        return copy
