"""The thread that computes a model's batches, one after the other, and notices when it cannot.

A batch that raises, or has a result that is no number, is computed again piece by piece: what
fails alone is refused, the others get their answers. A text that is being written, and for which
nobody waits any more, is given up after the token. After some such failures without a success
between them the model is asked what it could answer when it was loaded. If it no longer can, the
model has failed, and not the records: it computes nothing more, and says why.

A text that is streamed is computed in turns: between two batches every stream goes on by one part
that is waited for.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.predict.pieces import Piece
from xlnet_fast.predict.predictor import is_finite
from xlnet_fast.predict.writing import Interrupted
from xlnet_fast.serve.batcher import Call, Queue, Waiting
from xlnet_fast.serve.contract import ModelFailed, NotReady, Overloaded, Refusal, TimedOut

SUSPICIOUS = 3
"""Pieces that fail alone, one after the other, before the model itself is doubted."""
_log = logging.getLogger(__name__)


class Observer:
    """Told what is computed, in the inference thread; the base class does nothing with it."""

    def batch(self, pieces: int, tokens: int, longest: int, waits_s: Sequence[float]) -> None:
        """A batch is about to be computed.

        Args:
            pieces: how many. tokens: of them together. longest: tokens of the longest one.
            waits_s: how long each has waited.
        """

    def failed_alone(self) -> None:
        """A piece could not be computed by itself."""


class Worker:
    """A model's queue and its inference thread.

    All methods but the thread's own may be called from any thread; ``finished`` of a call is called
    in the inference thread.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Sequence[Piece], Callable[[], bool]], list[Any]],
        check: Callable[[], None],
        *,
        budget: int,
        limit: int,
        threads: int | None = None,
        observer: Observer | None = None,
        on_failure: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """Start the thread.

        Args:
            name: of the model, for the thread and messages.
            run: computes a batch, a result for each piece; or raises ``Interrupted`` if its second
                argument returns true, for nobody waits for the batch then.
            check: raises if the model cannot compute what it could when it was loaded.
            budget: tokens of a batch. limit: tokens that may wait.
            threads: of PyTorch, by default as many as it takes by itself.
            observer: told of batches. on_failure: called once with why the model has failed.
        """
        self.name = name
        self._run, self._check = run, check
        self._limit, self._threads = limit, threads
        self._observer = observer or Observer()
        self._on_failure = on_failure
        self._queue = Queue(budget)
        self._pieces: dict[Call, list[Waiting]] = {}
        self._turns: deque[Waiting] = deque()
        self._turns_left = 0
        self._reserved = 0
        self._changed = threading.Condition()
        self._ending = False
        self._failed_alone = 0
        self._tokens_per_s = 0.0
        self.failure = ""
        self._thread = threading.Thread(target=self._main, name=f"xlnet-{name}", daemon=True)
        self._thread.start()

    @property
    def tokens(self) -> int:
        """That wait, those to be read from texts that are being tokenized included."""
        return self._queue.tokens + self._reserved

    @property
    def alive(self) -> bool:
        """Whether it computes."""
        return self._thread.is_alive() and not self.failure

    def reserve(self, tokens: int) -> None:
        """Hold room for a request that is being tokenized; ``release`` gives it back.

        Raises:
            Overloaded: there is no room. NotReady: the model has failed.
        """
        with self._changed:
            self._admit(tokens)
            self._reserved += tokens

    def release(self, tokens: int) -> None:
        """Give back what ``reserve`` took."""
        with self._changed:
            self._reserved -= tokens

    def submit(self, call: Call, lengths: Sequence[int], groups: Sequence[Any]) -> None:
        """Put a call into the queue.

        Args:
            call: pieces or a piece of work.
            lengths: tokens of each piece, or of the work. groups: of each piece, as many.

        Raises:
            Overloaded: there is no room. NotReady: the model has failed.
        """
        now = time.monotonic()
        with self._changed:
            self._admit(sum(lengths))
            waiting = [
                Waiting(call, place, length, group, now)
                for place, (length, group) in enumerate(zip(lengths, groups, strict=True))
            ]
            for piece in waiting:
                self._queue.add(piece)
            self._pieces[call] = waiting
            self._changed.notify()

    def go_on(self, call: Call) -> None:
        """Put a piece of work, which was let in before, in front of the next batch.

        Raises:
            NotReady: the model has failed, or is being unloaded.
        """
        with self._changed:
            self._check_open()
            turn = Waiting(call, 0, 0, call, time.monotonic())
            self._turns.append(turn)
            self._pieces[call] = [turn]
            self._changed.notify()

    def cancel(self, call: Call) -> None:
        """Nobody waits for it: what is not being computed leaves the queue."""
        with self._changed:
            call.gone = True
            for piece in self._pieces.pop(call, ()):
                if piece in self._turns:
                    self._turns.remove(piece)
                elif piece.number:
                    self._queue.remove(piece)

    def close(self, refusal: XLNetFastError, timeout_s: float) -> bool:
        """Refuse what waits, let the batch end that is computed, and end the thread.

        Returns whether it has ended within the time.
        """
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self.refuse(refusal)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def refuse(self, refusal: XLNetFastError) -> None:
        """Answer everything that waits, or is being computed, with a refusal."""
        with self._changed:
            self._queue.clear()
            self._turns.clear()
            calls = list(self._pieces)
            self._pieces.clear()
        for call in calls:
            call.refuse(refusal)

    def _check_open(self) -> None:
        if self.failure or self._ending:
            raise NotReady(self.failure or f"{self.name} is being unloaded")

    def _admit(self, tokens: int) -> None:
        self._check_open()
        waiting = self._queue.tokens + self._reserved
        if waiting and waiting + tokens > self._limit:
            refusal = Overloaded(
                f"{waiting} tokens wait for {self.name}, and {tokens} more would be above "
                f"{self._limit}: try again"
            )
            if self._tokens_per_s:
                refusal.retry_after_s = int(min(30, 1 + waiting / self._tokens_per_s))
            raise refusal

    def _main(self) -> None:
        """The thread."""
        try:
            if self._threads is not None:
                torch.set_num_threads(self._threads)
            while (batch := self._next()) is not None:
                self._compute(batch)
                del batch  # or an idle thread would keep texts and results
        except BaseException as error:  # or nobody would know that it has ended
            _log.exception("the inference thread has ended", extra={"model": self.name})
            self._fail(f"the inference thread of {self.name} has ended: {_told(error)}")

    def _next(self) -> list[Waiting] | None:
        """Wait for something to compute; None at the end."""
        with self._changed:
            while True:
                if self._turns and self._turns_left:
                    self._turns_left -= 1
                    return [self._turns.popleft()]
                batch, late = self._queue.take(time.monotonic())
                self._refuse_late(late)
                self._turns_left = len(self._turns)
                if batch:
                    return batch
                if self._ending:
                    return None
                if not self._turns:
                    self._changed.wait()

    def _refuse_late(self, late: Sequence[Waiting]) -> None:
        for piece in late:
            self._settle(piece, TimedOut("no answer within the request's time: it still waited"))

    def _compute(self, batch: Sequence[Waiting]) -> None:
        now = time.monotonic()
        lengths = [piece.length for piece in batch]
        if batch[0].call.work is not None:
            self._settle(batch[0], self._worked(batch[0].call))
            return
        waits = [now - piece.arrived for piece in batch]
        self._observer.batch(len(batch), sum(lengths), max(lengths), waits)
        try:
            results = self._computed(batch)
        except Interrupted:
            self._give_up(batch)
            return
        if results is not None:
            self._failed_alone = 0
            took = max(time.monotonic() - now, 1e-6)
            self._tokens_per_s += 0.2 * (sum(lengths) / took - self._tokens_per_s)
            for piece, result in zip(batch, results, strict=True):
                self._settle(piece, result)
            return
        for piece in batch:
            self._compute_alone(piece, again=len(batch) > 1)

    def _compute_alone(self, piece: Waiting, again: bool) -> None:
        """What to do with a piece of a batch that could not be computed."""
        if piece.call.gone or self.failure:
            self._settle(piece, NotReady(self.failure or "cancelled"))
            return
        try:
            results = self._computed([piece]) if again else None
        except Interrupted:
            self._give_up([piece])
            return
        if results is not None:
            self._failed_alone = 0
            self._settle(piece, results[0])
            return
        self._failed_alone += 1
        self._observer.failed_alone()
        self._settle(piece, ModelFailed(f"{self.name} could not compute this record"))
        if self._failed_alone >= SUSPICIOUS:
            self._failed_alone = 0
            self._doubt()

    def _give_up(self, batch: Sequence[Waiting]) -> None:
        """Tell the late ones; the others have gone. It says nothing of the model."""
        for piece in batch:
            self._settle(piece, TimedOut("no answer within the request's time"))

    def _computed(self, batch: Sequence[Waiting]) -> list[Any] | None:
        """The results, or None if they cannot be computed or are no numbers.

        Raises:
            Interrupted: nobody waits for them any more.
        """
        pieces = [piece.call.pieces[piece.place] for piece in batch]
        calls = {piece.call for piece in batch}

        def interrupted() -> bool:
            now = time.monotonic()
            return not any(call.awaited(now) for call in calls)

        try:
            results = self._run(pieces, interrupted)
            usable = len(results) == len(pieces) and all(map(is_finite, results))
        except Interrupted:
            raise
        except Exception as error:
            # The message alone may hold a text, so it is not logged unless asked.
            _log.warning(
                "a batch has failed",
                extra={"model": self.name, "pieces": len(pieces), "error": type(error).__name__},
            )
            _log.debug("why a batch has failed", exc_info=True)
            return None
        if usable:
            return results
        _log.warning(
            "results are no finite numbers", extra={"model": self.name, "pieces": len(pieces)}
        )
        return None

    def _worked(self, call: Call) -> Any:
        """The result of a piece of work, or the exception to raise for it."""
        assert call.work is not None
        try:
            return call.work()
        except (ArgumentError, Refusal) as error:
            return error
        except Exception as error:
            _log.warning(
                "a piece of work has failed",
                extra={"model": self.name, "error": type(error).__name__},
            )
            _log.debug("why a piece of work has failed", exc_info=True)
            self._observer.failed_alone()
            return ModelFailed(f"{self.name} could not compute this record")

    def _doubt(self) -> None:
        """Ask the model what it could answer when it was loaded."""
        try:
            self._check()
        except Exception as error:
            self._fail(
                f"{self.name} failed {SUSPICIOUS} records in a row, and then what it could answer "
                f"when it was loaded: {_told(error)}"
            )

    def _fail(self, reason: str) -> None:
        with self._changed:
            self.failure = reason
        _log.error("the model has failed", extra={"model": self.name, "reason": reason})
        self.refuse(NotReady(reason))
        self._on_failure(reason)

    def _settle(self, piece: Waiting, result: Any) -> None:
        call = piece.call
        call.settle(piece.place, result)
        if not call.left:
            with self._changed:
                self._pieces.pop(call, None)


def _told(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
