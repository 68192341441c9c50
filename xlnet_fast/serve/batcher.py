"""Which of the waiting pieces are computed next, side by side.

The oldest piece sets the batch; pieces of its group join it, the nearest in length first, while the
batch with its padding stays within the budget and little of it is padding. A batch is never waited
for: what is there when the model is idle is taken. The oldest always goes, so a piece waits for at
most as many batches as there were pieces before it, however unlike the others it is.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

PADDING = 1.25
"""A batch's tokens, padding included, for each one that is none: no more than so many."""


@dataclass(eq=False)
class Call:
    """A request's pieces, or one piece of work that is done alone, on their way to the model.

    Attributes:
        pieces: to compute; of ``work`` none.
        deadline: in seconds of ``time.monotonic``; what is left then is not computed.
        finished: called once when nothing is left to do, unless the call was cancelled.
        work: instead of pieces; its result is the first of ``results``.
        results: of the pieces in their order, an exception where there is none.
        left: pieces without a result. gone: nobody waits for it any more.
    """

    pieces: Sequence[Any]
    deadline: float
    finished: Callable[[], None]
    work: Callable[[], Any] | None = None
    results: list[Any] = field(default_factory=list)
    left: int = 0
    gone: bool = False

    def __post_init__(self) -> None:
        """Nothing is there yet."""
        self.left = 1 if self.work is not None else len(self.pieces)
        self.results = [None] * self.left

    def awaited(self, now: float) -> bool:
        """Whether somebody still waits for a result."""
        return bool(self.left) and not self.gone and now < self.deadline

    def settle(self, place: int, result: Any) -> None:
        """Note a result, or an exception; the last one tells who waits."""
        if not self.left:
            return
        self.results[place] = result
        self.left -= 1
        if not self.left and not self.gone:
            self.finished()

    def refuse(self, error: Exception) -> None:
        """Put an exception where there is no result yet, and tell who waits."""
        if self.left and not self.gone:
            self.results = [error if result is None else result for result in self.results]
            self.left = 0
            self.finished()


@dataclass(eq=False, slots=True)
class Waiting:
    """A piece in the queue.

    Attributes:
        call, place: whose it is, and where among its pieces.
        length: its tokens. group: with which it may share a batch.
        arrived: in seconds of ``time.monotonic``.
        number: of its arrival; of equal lengths the older one goes first. here: in the queue.
    """

    call: Call
    place: int
    length: int
    group: Hashable
    arrived: float
    number: int = 0
    here: bool = True

    @property
    def key(self) -> tuple[int, int]:
        """Its place among those of its group."""
        return self.length, self.number


class Queue:
    """The pieces that wait, by age and, in each group, by length. Not for several threads.

    Attributes:
        tokens: that wait.
    """

    def __init__(self, budget: int, padding: float = PADDING) -> None:
        """``budget``: tokens of a batch, padding included; a longer piece goes alone."""
        self.budget = budget
        self.padding = padding
        self.tokens = 0
        self._by_age: deque[Waiting] = deque()
        self._by_length: dict[Hashable, list[Waiting]] = {}
        self._numbers = 0

    def __len__(self) -> int:
        """How many pieces wait."""
        return sum(map(len, self._by_length.values()))

    def add(self, piece: Waiting) -> None:
        """Put a piece at the end."""
        self._numbers += 1
        piece.number, piece.here = self._numbers, True
        self._by_age.append(piece)
        insort(self._by_length.setdefault(piece.group, []), piece, key=_key)
        self.tokens += piece.length

    def remove(self, piece: Waiting) -> None:
        """Take a piece out; one that is not there stays so."""
        if piece.here:
            row = self._by_length[piece.group]
            at = bisect_left(row, piece.key, key=_key)
            self._taken(piece.group, at, at + 1)

    def clear(self) -> list[Waiting]:
        """Take all out, the oldest first."""
        pieces = [piece for piece in self._by_age if piece.here]
        for piece in pieces:
            self.remove(piece)
        return pieces

    def take(self, now: float) -> tuple[list[Waiting], list[Waiting]]:
        """The next batch, by length, and pieces that were found to be late; both leave the queue.

        The batch is empty if none waits that is in time.
        """
        late: list[Waiting] = []
        while True:
            oldest = self._oldest()
            if oldest is None:
                return [], late
            row = self._by_length[oldest.group]
            at = bisect_left(row, oldest.key, key=_key)
            first, last = self._span(row, at)
            chosen = self._taken(oldest.group, first, last)
            late += [piece for piece in chosen if piece.call.deadline <= now]
            batch = [piece for piece in chosen if piece.call.deadline > now]
            if batch:
                return batch, late

    def _oldest(self) -> Waiting | None:
        while self._by_age and not self._by_age[0].here:
            self._by_age.popleft()
        return self._by_age[0] if self._by_age else None

    def _span(self, row: Sequence[Waiting], at: int) -> tuple[int, int]:
        """The batch of the piece at a place: it is a range of the pieces by length."""
        first, last, own = at, at + 1, row[at].length
        tokens = own
        while True:
            near = []
            if first > 0:
                near.append((own - row[first - 1].length, -1, row[first - 1].length))
            if last < len(row):
                near.append((row[last].length - own, 1, row[last].length))
            for _, side, length in sorted(near):
                cost = (last - first + 1) * max(length, row[last - 1].length)
                if cost <= self.budget and cost <= self.padding * (tokens + length):
                    first, last = (first - 1, last) if side < 0 else (first, last + 1)
                    tokens += length
                    break
            else:
                return first, last

    def _taken(self, group: Hashable, first: int, last: int) -> list[Waiting]:
        row = self._by_length[group]
        pieces = row[first:last]
        del row[first:last]
        if not row:
            del self._by_length[group]
        for piece in pieces:
            piece.here = False
            self.tokens -= piece.length
        return pieces


def _key(piece: Waiting) -> tuple[int, int]:
    return piece.key
