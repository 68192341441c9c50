"""What is computed at once: some batch elements, query rows and keys."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """Batch elements b0..b1, all of group g, query rows i0..i1 and keys j0..j1."""

    group: int
    b0: int
    b1: int
    i0: int
    i1: int
    j0: int
    j1: int

    @property
    def elements(self) -> slice:
        """Of the batch."""
        return slice(self.b0, self.b1)

    @property
    def columns(self) -> slice:
        """Of the keys."""
        return slice(self.j0, self.j1)

    @property
    def width(self) -> int:
        """The number of keys."""
        return self.j1 - self.j0

    @property
    def index(self) -> tuple[slice, slice]:
        """Indexes (B, I, ...) tensors."""
        return self.elements, slice(self.i0, self.i1)


@dataclass(frozen=True)
class Chunk(Block):
    """A block for a CPU's caches. The positions of its rows lie in ``lowest`` .. ``highest``."""

    lowest: int
    highest: int

    @property
    def index_of_heads(self) -> tuple[slice, slice, slice]:
        """Indexes (B, N, I, ...) tensors."""
        return self.elements, slice(None), slice(self.i0, self.i1)


@dataclass(frozen=True)
class Part:
    """Rows a0..a1 of a block, and the ``width`` rows of r from ``start`` on that they meet."""

    a0: int
    a1: int
    start: int
    width: int
