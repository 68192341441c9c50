"""The memory: what each layer read of earlier tokens, and the keys and values made of it.

To whoever looks at it, the memory is Hugging Face's ``mems``, a list of one tensor a layer. In
inference it brings along the keys and values of its rows, which a layer would otherwise project
again at every segment and, writing text, at every token.

Letters: B batch, M rows of memory, I tokens of a segment, N heads, D their width, H of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from operator import is_
from typing import Any

import torch
from torch import Tensor

_LEAST_SPARE = 64
"""Rows that are allocated beyond those needed, at least; else a quarter, or two segments."""


class Memory(list[Tensor]):
    """One (M, B, H) tensor for each layer, oldest row first.

    Attributes:
        padding: (B, M) bool, rows that no token sees, or None.
        begun: (B,) bool, whether a text has had a token that is no padding; None: all have.
        kept: keys and values of the rows, or None.
    """

    def __init__(
        self,
        rows: Iterable[Tensor] = (),
        padding: Tensor | None = None,
        begun: Tensor | None = None,
        kept: KeptRows | None = None,
    ) -> None:
        super().__init__(rows)
        self.padding, self.begun, self.kept = padding, begun, kept
        self._made = tuple(self) if kept is not None else ()

    def __reduce__(self) -> tuple[Any, ...]:
        """Without keys and values, which are made again."""
        return Memory, ([x.clone() for x in self], self.padding, self.begun)

    def keys_as_of(self, stamp: Hashable) -> KeptRows | None:
        """The keys and values, if they still are those of the rows and of a model.

        Args:
            stamp: all that they depend on beside the rows.
        """
        kept = self.kept
        if kept is None or kept.store.stamp != stamp or not kept.store.is_as_written():
            return None
        return kept if len(self) == len(self._made) and all(map(is_, self, self._made)) else None

    def select(self, elements: Tensor) -> Memory:
        """The memory of some elements of the batch, in this order, as beam search asks for."""
        elements = elements.to(self[0].device)
        padding, begun = (
            None if x is None else x.index_select(0, elements) for x in (self.padding, self.begun)
        )
        kept = self.kept if self.kept is None else self.keys_as_of(self.kept.store.stamp)
        if kept is None:
            return Memory([x.index_select(1, elements) for x in self], padding, begun)
        return kept.select(elements).as_memory(padding, begun)


class KeptRows:
    """Rows ``start`` to ``end`` of a store."""

    def __init__(self, store: Store, start: int, end: int) -> None:
        self.store, self.start, self.end = store, start, end

    def __len__(self) -> int:
        """M."""
        return self.end - self.start

    def as_memory(self, padding: Tensor | None, begun: Tensor | None) -> Memory:
        """The rows as a memory."""
        rows = (layer[self.start : self.end] for layer in self.store.rows)
        return Memory(rows, padding, begun, self)

    def of_layer(self, number: int) -> tuple[Tensor, Tensor]:
        """Keys and values, (B, M, N, D) each."""
        keys, values = self.store.keys[number], self.store.values[number]
        span = slice(self.start, self.end)
        return keys[:, :, span].transpose(1, 2), values[:, :, span].transpose(1, 2)

    def select(self, elements: Tensor) -> KeptRows:
        """A copy for some elements of the batch."""
        old, span = self.store, slice(self.start, self.end)
        store = old.sibling(len(elements), len(self))
        with torch.no_grad():
            store.keys[:, :, :, : len(self)] = old.keys[:, :, :, span].index_select(1, elements)
            store.values[:, :, :, : len(self)] = old.values[:, :, :, span].index_select(1, elements)
            store.rows[:, : len(self)] = old.rows[:, span].index_select(2, elements)
        store.written(len(self))
        return KeptRows(store, 0, len(self))


class Store:
    """Room for rows, their keys and their values, and the projected tables of positions.

    Attributes:
        keys, values: (layers, B, N, capacity, D). rows: (layers, capacity, B, H).
        tables: (N, P, D) for each layer, of the distances P - 1 .. 0, or None before the first use.
        stamp: all that keys and tables depend on beside the rows.
        end: rows that were written; a memory that ends before must copy, not append.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: tuple[int, int],
        width: int,
        capacity: int,
        like: Tensor,
        stamp: Hashable,
    ) -> None:
        # Tensors of inference mode would not tell of changes.
        with torch.inference_mode(False), torch.no_grad():
            options: Any = {"dtype": like.dtype, "device": like.device}
            count, dim = heads
            self.keys = torch.empty(layers, batch, count, capacity, dim, **options)
            self.values = torch.empty(layers, batch, count, capacity, dim, **options)
            self.rows = torch.empty(layers, capacity, batch, width, **options)
        self.tables: list[Tensor | None] = [None] * layers
        self.stamp, self.end = stamp, 0
        self._version = self.rows._version

    @property
    def capacity(self) -> int:
        """How many rows there is room for."""
        return self.rows.shape[1]

    def sibling(self, batch: int, rows: int, spare: int = 0) -> Store:
        """An empty store of the same model, with room for some rows."""
        layers, _, heads, _, dim = self.keys.shape
        capacity = rows + max(_LEAST_SPARE, rows // 4, spare)
        store = Store(
            layers, batch, (heads, dim), self.rows.shape[3], capacity, self.rows, self.stamp
        )
        store.tables = self.tables
        return store

    def written(self, end: int) -> None:
        """Note that rows up to ``end`` are written."""
        self.end, self._version = end, self.rows._version

    def is_as_written(self) -> bool:
        """Whether nobody changed a row in place since: its keys would be another's."""
        return self.rows._version == self._version

    def table(self, number: int, keys: int, make: Callable[[int], Tensor]) -> Tensor:
        """(N, P, D) of a layer with P >= J rows.

        Args:
            keys: J. make: rows of the distances P - 1 .. 0 for a P, projected.
        """
        table = self.tables[number]
        if table is None or table.shape[1] < keys:
            with torch.inference_mode(False), torch.no_grad():
                table = make(keys + _LEAST_SPARE)
            self.tables[number] = table
        return table


class Keeping:
    """One segment's reading of kept rows and writing of its own.

    Attributes:
        source: the memory's kept rows, or None where it has none.
        store: where the segment's rows go. first, last: the rows that are there afterwards: all
            that a single token sees; of more, those that will be the memory.
    """

    def __init__(
        self,
        source: KeptRows | None,
        store: Callable[[int], Store],
        memory_rows: int,
        tokens: int,
        mem_len: int,
    ) -> None:
        copied = min(memory_rows, max(mem_len - tokens, 0)) if tokens > 1 else memory_rows
        self._new = min(tokens, mem_len)
        self.source, self._mem_len = source, mem_len
        fits = (
            source is not None
            and self._new == tokens
            and source.store.end == source.end
            and source.end + tokens <= source.store.capacity
        )
        self._copied = 0
        if source is not None and fits:
            self.store, self._place, self.first = source.store, source.end, source.start
        else:
            self.store, self._place, self.first = store(copied + self._new), copied, 0
            self._copied = copied
        self.last = self._place + self._new
        if source is not None and not fits and copied:
            self._copied = 0
            self._bring(source, copied)

    def _bring(self, source: KeptRows, count: int) -> None:
        span, old, new = slice(source.end - count, source.end), source.store, self.store
        with torch.no_grad():
            new.keys[:, :, :, :count] = old.keys[:, :, :, span]
            new.values[:, :, :, :count] = old.values[:, :, :, span]
            new.rows[:, :count] = old.rows[:, span]

    def put(
        self,
        number: int,
        current: tuple[Tensor, Tensor, Tensor],
        memory: tuple[Tensor, Tensor, Tensor] | None,
    ) -> None:
        """Write a layer's keys, values (B, rows, N, D) and rows (B, rows, H).

        Args:
            current: of the segment. memory: of the memory, where it was not kept.
        """
        if memory is not None and self._copied:
            self.__write(number, 0, [x[:, x.shape[1] - self._copied :] for x in memory])
        tokens = current[0].shape[1]
        self.__write(number, self._place, [x[:, tokens - self._new :] for x in current])

    def __write(self, number: int, place: int, parts: list[Tensor]) -> None:
        keys, values, rows = parts
        span, store = slice(place, place + keys.shape[1]), self.store
        store.keys[number, :, :, span] = keys.transpose(1, 2)
        store.values[number, :, :, span] = values.transpose(1, 2)
        store.rows[number, span] = rows.transpose(0, 1)

    def done(self) -> KeptRows:
        """After the last layer: the next segment's memory."""
        self.store.written(self.last)
        return KeptRows(self.store, max(self.first, self.last - self._mem_len), self.last)
