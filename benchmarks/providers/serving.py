"""Ways to make batches of waiting requests, and a service that makes them so.

The service is ``xlnet-fast serve`` as it is; only the queue is another where another way is asked
for: python -m benchmarks.providers.serving POLICY MODEL SECONDS, those that a request may take.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from xlnet_fast.predict.pieces import TOKEN_BUDGET
from xlnet_fast.serve import batcher, lifecycle, worker
from xlnet_fast.serve.options import ServeOptions

OURS, FIFO, SINGLE = "ours", "FIFO, 8 a batch", "one by one"


class FirstCome:
    """A queue, as ``batcher.Queue``, of which the oldest few pieces are a batch."""

    def __init__(self, most: int) -> None:
        """``most``: pieces of a batch."""
        self.tokens = 0
        self._most = most
        self._waiting: deque[batcher.Waiting] = deque()

    def __len__(self) -> int:
        """How many pieces wait."""
        return sum(piece.here for piece in self._waiting)

    def add(self, piece: batcher.Waiting) -> None:
        """Put a piece at the end."""
        piece.here = True
        self._waiting.append(piece)
        self.tokens += piece.length

    def remove(self, piece: batcher.Waiting) -> None:
        """Take a piece out; one that is not there stays so."""
        if piece.here:
            piece.here = False
            self.tokens -= piece.length

    def clear(self) -> list[batcher.Waiting]:
        """Take all out, the oldest first."""
        pieces = [piece for piece in self._waiting if piece.here]
        for piece in pieces:
            self.remove(piece)
        self._waiting.clear()
        return pieces

    def take(self, now: float) -> tuple[list[batcher.Waiting], list[batcher.Waiting]]:
        """The next batch, and pieces that were found to be late; both leave the queue."""
        batch: list[batcher.Waiting] = []
        late: list[batcher.Waiting] = []
        while self._waiting and len(batch) < self._most:
            piece = self._waiting.popleft()
            if piece.here:
                self.remove(piece)
                (batch if piece.call.deadline > now else late).append(piece)
        return batch, late


QUEUES: dict[str, Callable[[], Any]] = {
    OURS: lambda: batcher.Queue(TOKEN_BUDGET),
    FIFO: lambda: FirstCome(8),
    SINGLE: lambda: FirstCome(1),
}


def batches(policy: str, lengths: list[int]) -> list[list[int]]:
    """Return the batches that are made of texts that all wait, by their places."""
    queue = QUEUES[policy]()
    places = {}
    for place, length in enumerate(lengths):
        call = batcher.Call([None], float("inf"), lambda: None)
        piece = batcher.Waiting(call, 0, length, None, 0.0)
        places[id(piece)] = place, piece  # kept, or else another would get its id
        queue.add(piece)
    found = []
    while len(queue):
        batch, _ = queue.take(0.0)
        found.append([places[id(piece)][0] for piece in batch])
    return found


def main() -> None:
    """Serve one model, called "model", on a free port until the process is ended."""
    policy, model, timeout_s = sys.argv[1:]
    # Each server of a comparison has one core.
    options = ServeOptions(
        models=model, name="model", port=0, timeout=float(timeout_s), threads=1, log_level="error"
    )
    worker.Queue = lambda budget: QUEUES[policy]()  # type: ignore[assignment,misc]
    lifecycle.run(options, partial(print, flush=True))


if __name__ == "__main__":
    main()
