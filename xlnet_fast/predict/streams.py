"""A computation that speaks in between, turned into an iterator that computes when it is asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

TURN_TOKENS, TURN_S = 8, 0.1
"""A turn without a part ends after so many tokens, or seconds, whichever comes first."""
_END = object()


class Draws:
    """Random numbers of a seed, without a trace in those of everybody else.

        with Draws(3, device):
            torch.multinomial(...)

    ``pause`` and ``resume`` let others draw in between. Without a seed it does nothing.
    """

    def __init__(self, seed: int | None, device: torch.device) -> None:
        """``device``: on which is drawn, beside the CPU."""
        self._seed = seed
        self._generators = [torch.default_generator]
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            self._generators.append(torch.cuda.default_generators[index])
        self._others: list[Tensor] | None = None
        self._own: list[Tensor] | None = None

    def __enter__(self) -> Draws:
        """Begin."""
        self.resume()
        if self._seed is not None:
            for generator in self._generators:
                generator.manual_seed(self._seed)
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        if self._others is not None:
            self.pause()

    def pause(self) -> None:
        """Let others draw."""
        if self._seed is None or self._others is None:
            return
        self._own = [generator.get_state() for generator in self._generators]
        self._set(self._others)
        self._others = None

    def resume(self) -> None:
        """Go on with one's own."""
        if self._seed is None:
            return
        self._others = [generator.get_state() for generator in self._generators]
        if self._own is not None:
            self._set(self._own)

    def _set(self, states: list[Tensor]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)


class Handover(StoppingCriteria):
    """Between a thread that computes and one that asks: only one of them runs at a time.

    As a criterion of ``generate``, it ends what nobody asks for any more, before another token is
    computed. It also hands over an empty part where nothing else was for some tokens, or a moment:
    others wait for the turn's end.

    Attributes:
        stopped: whether nobody will ask again.
        draws: of the thread that computes, which pause while it waits.
    """

    def __init__(self) -> None:
        """Nothing was asked for yet."""
        self.stopped = False
        self.draws: Draws | None = None
        self._asked = threading.Semaphore(0)
        self._given = threading.Semaphore(0)
        self._item: Any = None
        self._begin_turn()

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """(rows,) bool; called after each token."""
        self._tokens += 1
        if self._tokens >= TURN_TOKENS or time.monotonic() - self._since >= TURN_S:
            self.give("")
        return torch.full((len(input_ids),), self.stopped, device=input_ids.device)

    def give(self, item: Any) -> None:
        """Hand something over, and wait until more is asked for."""
        if self.stopped:
            return
        if self.draws is not None:
            self.draws.pause()
        self._item = item
        self._given.release()
        self._asked.acquire()
        if self.draws is not None and not self.stopped:
            self.draws.resume()
        self._begin_turn()

    def _begin_turn(self) -> None:
        self._tokens, self._since = 0, time.monotonic()

    def take(self) -> Any:
        """Let the other thread compute until it has something, and take that."""
        self._asked.release()
        self._given.acquire()
        return self._item

    def work(self, compute: Callable[[Handover], None]) -> None:
        """What the thread that computes does."""
        self._asked.acquire()
        self._begin_turn()
        result: Any = _END
        try:
            if not self.stopped:
                compute(self)
        except BaseException as error:
            result = error
        self._item = result
        self._given.release()

    def stop(self) -> None:
        """Nobody will ask again."""
        self.stopped = True
        self._asked.release()


def in_turns(
    compute: Callable[[Handover], None], computing: AbstractContextManager[Any]
) -> Iterator[str]:
    """What ``compute`` hands over, computed piece by piece as somebody asks for it.

    It runs in a thread of its own, for ``generate`` calls and is not called; between two pieces it
    stands still. Who stops asking (``close()``, or forgets the iterator) ends it.

    Args:
        computing: held while it computes.
    """
    handover = Handover()
    thread = threading.Thread(
        target=handover.work, args=(compute,), name="xlnet-fast-stream", daemon=True
    )
    thread.start()
    try:
        while True:
            with computing:
                item = handover.take()
            if item is _END:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        handover.stop()
