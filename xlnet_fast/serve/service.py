"""The service that protocols ask: from records to answers, over the tokenizer and the queue."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.predict.pieces import Encoded
from xlnet_fast.predict.predictor import Predictor
from xlnet_fast.predict.writing import Ending
from xlnet_fast.serve import notes
from xlnet_fast.serve.answerable import is_plain
from xlnet_fast.serve.batcher import Call
from xlnet_fast.serve.contract import (
    Limits,
    ModelFailed,
    ModelStatus,
    NotReady,
    Record,
    TimedOut,
    TooLarge,
)
from xlnet_fast.serve.encoding import characters_of, decode_all, encode_all, tokens_of
from xlnet_fast.serve.manager import Manager
from xlnet_fast.serve.metrics import Metrics
from xlnet_fast.serve.model import Version
from xlnet_fast.serve.options import ServeOptions

CHARACTERS_PER_TOKEN = 8
"""Fewer than most texts have: what is held free for a text until it is tokenized."""
TOKENIZING_THREADS = 2
T = TypeVar("T")
_END = object()


@dataclass(frozen=True)
class Answers:
    """What came of a request.

    Attributes:
        model, version, task: that answered.
        each: of every record its answer, or the error that there was instead.
    """

    model: str
    version: str
    task: str
    each: list[dict[str, Any] | XLNetFastError]

    def all(self) -> list[dict[str, Any]]:
        """The answers.

        Raises:
            XLNetFastError: the first that there is, of its own kind; says which record.
        """
        answers: list[dict[str, Any]] = []
        for number, answer in enumerate(self.each, 1):
            if isinstance(answer, XLNetFastError):
                if len(self.each) == 1:
                    raise answer
                numbered = type(answer)(f"record {number}: {answer}")
                numbered.__dict__.update(answer.__dict__)
                raise numbered from answer
            answers.append(answer)
        return answers


class ModelService:
    """See ``contract.Service``, which it implements.

    Attributes:
        limits: what it takes. manager: its models. metrics: what is measured.
        draining: whether its end is near: nothing new is taken.
        in_flight: requests that are being answered, health checks left out.
    """

    def __init__(self, options: ServeOptions, metrics: Metrics | None = None) -> None:
        """Nothing is loaded before :meth:`start`."""
        self.metrics = metrics or Metrics()
        self.limits = Limits(
            body_bytes=options.body_bytes,
            records=options.max_records,
            tokens=options.max_tokens,
            queued_tokens=options.queue_tokens,
            timeout_s=options.timeout,
        )
        self.manager = Manager(
            options,
            observer=self.metrics.observer,
            changed=lambda: self.metrics.show_models(self.models()),
            noted=self.metrics.note_load,
        )
        self.metrics.watch_queues(self.manager.loaded)
        self.draining = False
        self.in_flight = 0
        self._texts = ThreadPoolExecutor(TOKENIZING_THREADS, "xlnet-texts")

    async def start(self) -> None:
        """Load the models; returns when they are there, or have failed.

        Raises:
            XLNetFastError: the one model that was named cannot be loaded.
        """
        await self.manager.start()

    async def stop(self) -> bool:
        """Refuse what is still waiting, and end the threads. Returns whether all have ended."""
        self.draining = True
        ended = await self.manager.stop()
        self._texts.shutdown(wait=False, cancel_futures=True)
        return ended

    def refuse_waiting(self) -> None:
        """Answer what still waits for a model with a refusal; for the end."""
        for one in self.manager.loaded():
            if one.worker is not None:
                one.worker.refuse(NotReady("the service is ending, and the time is over"))

    @property
    def ready(self) -> bool:
        """Whether requests are taken: every model that was asked for is ready, no end is near."""
        return not self.draining and self.manager.ready

    async def predict(
        self,
        model: str,
        records: Sequence[Record],
        *,
        version: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> list[dict[str, Any]]:
        """See ``contract.Service.predict``."""
        found = await self.ask(
            model, records, version=version, parameters=parameters, timeout_s=timeout_s
        )
        return found.all()

    async def ask(
        self,
        model: str,
        records: Sequence[Record],
        *,
        version: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> Answers:
        """As ``predict``, with who answered, and an error in the place of a record's answer.

        Raises:
            ArgumentError, Refusal: nothing was answered at all.
        """
        found = self._found(model, version)
        if not records:
            raise ArgumentError("there are no records, expected at least one")
        if len(records) > self.limits.records:
            raise TooLarge(
                f"the request has {len(records)} records, expected at most {self.limits.records}"
            )
        notes.current().records = len(records)
        seconds = self._seconds(timeout_s)
        with found.used():
            each = await _within(seconds, self._answers(found, records, parameters or {}, seconds))
        assert found.predictor is not None
        return Answers(found.name, found.version, found.predictor.task.name, each)

    async def stream(
        self,
        model: str,
        record: Record,
        *,
        version: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[str]:
        """See ``contract.Service.stream``."""
        found = self._found(model, version)
        seconds = self._seconds(timeout_s)
        deadline = time.monotonic() + seconds
        with found.used():
            predictor: Any = found.predictor
            (encoded,) = await _within(seconds, self._encoded(found, [record], parameters or {}))
            if isinstance(encoded, XLNetFastError):
                raise encoded
            parts: Any = None

            def begin() -> Any:
                nonlocal parts
                parts = predictor.stream(encoded)
                return next(parts, _END)

            def go_on() -> Any:
                return next(parts, _END)

            def close() -> None:
                if parts is not None:
                    parts.close()

            part: Any = None
            try:
                left = deadline - time.monotonic()
                part = await _within(left, self._alone(found, begin, deadline, tokens_of(encoded)))
                while part is not _END:
                    if part or isinstance(part, Ending):
                        yield part  # the empty ones only end turns
                    left = deadline - time.monotonic()
                    part = await _within(left, self._alone(found, go_on, deadline))
            finally:
                if part is not _END:
                    self._close(found, close)

    async def explain(
        self,
        model: str,
        record: Record,
        *,
        version: str | None = None,
        method: str,
        target: str | int | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """See ``contract.Service.explain``."""
        found = self._found(model, version)
        with found.used():
            work = self._explained(found, record, parameters or {}, method=method, target=target)
            return await _within(self.limits.timeout_s, work)

    def predictor(self, model: str, version: str | None = None) -> Predictor:
        """See ``contract.Service.predictor``."""
        found = self.manager.lookup(model, version).predictor
        assert found is not None
        return found

    def models(self) -> list[ModelStatus]:
        """See ``contract.Service.models``."""
        return self.manager.statuses()

    async def load(self, name: str, folder: str) -> None:
        """See ``contract.Service.load``."""
        self._refuse_at_the_end()
        await self.manager.load_named(name, folder)

    async def unload(self, name: str) -> None:
        """See ``contract.Service.unload``."""
        self.manager.unload_named(name)

    def _found(self, model: str, version: str | None) -> Version:
        self._refuse_at_the_end()
        found = self.manager.lookup(model, version)
        noted = notes.current()
        noted.model, noted.version = found.name, found.version
        return found

    def _refuse_at_the_end(self) -> None:
        if self.draining:
            raise NotReady("the service is about to end")

    def _seconds(self, timeout_s: float | None) -> float:
        """A request's time; not more than the limit.

        Raises:
            ArgumentError: it is no time.
        """
        if timeout_s is None:
            return self.limits.timeout_s
        if not (math.isfinite(timeout_s) and timeout_s > 0):
            raise ArgumentError(f"timeout_s is {timeout_s}, expected seconds, more than 0")
        return min(float(timeout_s), self.limits.timeout_s)

    async def _answers(
        self,
        found: Version,
        records: Sequence[Record],
        parameters: Mapping[str, Any],
        seconds: float,
    ) -> list[dict[str, Any] | XLNetFastError]:
        assert found.predictor is not None
        deadline = time.monotonic() + seconds
        encoded = await self._encoded(found, records, parameters)
        good = [one for one in encoded if isinstance(one, Encoded)]
        pieces = [piece for one in good for piece in one.pieces]
        results: list[Any] = []
        if pieces:
            done = asyncio.get_running_loop().create_future()
            call = self._call(pieces, deadline, done)
            assert found.worker is not None
            found.worker.submit(call, [len(p) for p in pieces], [p.group for p in pieces])
            try:
                await done
            finally:
                _cancel(found, call)
            results = call.results
        decode = partial(decode_all, found.predictor, encoded, results, found.name)
        return await self._in_thread(decode)

    async def _explained(
        self, found: Version, record: Record, parameters: Mapping[str, Any], **how: Any
    ) -> dict[str, Any]:
        predictor: Any = found.predictor
        (encoded,) = await self._encoded(found, [record], parameters)
        if isinstance(encoded, XLNetFastError):
            raise encoded
        deadline = time.monotonic() + self.limits.timeout_s
        # The names of parameters were looked at, so none of them is one of `how`.
        work = partial(predictor.attributions, record, **parameters, **how)
        result = await self._alone(found, work, deadline, tokens_of(encoded))
        if not is_plain(result):
            raise ModelFailed(f"{found.name} gave this record values that are no numbers")
        return result

    async def _alone(
        self, found: Version, work: Callable[[], Any], deadline: float, tokens: int | None = None
    ) -> Any:
        """The result of a piece of work in the inference thread.

        Args:
            tokens: that it computes, for the queue; None if it goes on with what was let in.
        """
        assert found.worker is not None
        done = asyncio.get_running_loop().create_future()
        call = self._call((), deadline, done, work)
        if tokens is None:
            found.worker.go_on(call)
        else:
            found.worker.submit(call, [tokens], [call])
        try:
            await done
        finally:
            _cancel(found, call)
        if isinstance(call.results[0], XLNetFastError):
            raise call.results[0]
        return call.results[0]

    @staticmethod
    def _close(found: Version, close: Callable[[], None]) -> None:
        """End a stream that nobody reads to its end, once it is not being computed."""
        assert found.worker is not None
        call = Call((), math.inf, lambda: None, close)
        try:
            found.worker.go_on(call)
        except NotReady:
            close()

    async def _encoded(
        self, found: Version, records: Sequence[Record], parameters: Mapping[str, Any]
    ) -> list[Encoded | XLNetFastError]:
        """The records as the model reads them, from another thread; errors in their places.

        Raises:
            Overloaded: too much waits already, which is known before a text is tokenized.
        """
        assert found.worker is not None
        assert found.predictor is not None
        worker = found.worker
        guess = 1 + sum(map(characters_of, records)) // CHARACTERS_PER_TOKEN
        worker.reserve(guess)
        try:
            encode = partial(encode_all, found.predictor, records, parameters, self.limits.tokens)
            encoded = await self._in_thread(encode)
        finally:
            worker.release(guess)
        tokens = sum(tokens_of(one) for one in encoded if isinstance(one, Encoded))
        notes.current().tokens = tokens
        if tokens > self.limits.queued_tokens:
            raise TooLarge(
                f"the records have {tokens} tokens, expected at most {self.limits.queued_tokens} "
                "in a request: send fewer"
            )
        return encoded

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._texts, work)

    @staticmethod
    def _call(
        pieces: Sequence[Any],
        deadline: float,
        done: asyncio.Future[None],
        work: Callable[[], Any] | None = None,
    ) -> Call:
        """A call whose end sets a future of the event loop."""
        loop = asyncio.get_running_loop()

        def finished() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(_done, done)

        return Call(pieces, deadline, finished, work)


def _cancel(found: Version, call: Call) -> None:
    """Whoever asked waits no more; after the last result this does nothing."""
    if found.worker is not None:
        found.worker.cancel(call)


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _within(seconds: float, work: Any) -> Any:
    """What a coroutine gives.

    Raises:
        TimedOut: it took too long; it was cancelled.
    """
    try:
        return await asyncio.wait_for(work, max(seconds, 0.0))
    except (asyncio.TimeoutError, TimeoutError):
        raise TimedOut("no answer within the request's time") from None
