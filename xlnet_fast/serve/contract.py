"""What a protocol may ask of the service, and how the service says no.

A protocol turns a request into calls of :class:`Service`, and answers and refusals into a response.
It knows neither queues nor threads; the service knows no protocol.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from xlnet_fast.errors import XLNetFastError
from xlnet_fast.predict.predictor import Predictor

Record = Mapping[str, Any] | str


class Refusal(XLNetFastError):
    """A request that is not answered; the message says why and is sent to the client.

    What is wrong with a record or a parameter is an ``ArgumentError``, as from ``Predictor``; its
    status is 400.

    Attributes:
        status: the HTTP status.
        retry_after_s: after which time another try makes sense, None if it does not.
    """

    status = 500
    retry_after_s: int | None = None


class UnknownModel(Refusal):
    """No model, or no version of it, is loaded under that name."""

    status = 404


class TooLarge(Refusal):
    """More bytes, records or tokens than one request may have."""

    status = 413


class Overloaded(Refusal):
    """The queue is full."""

    status = 429
    retry_after_s = 1


class NotReady(Refusal):
    """The model is being loaded, has failed, or the service is about to end."""

    status = 503
    retry_after_s = 5


class TimedOut(Refusal):
    """No answer within the request's time."""

    status = 504


class ModelFailed(Refusal):
    """The model could not compute this record, alone, or computed values that are no numbers."""


class Conflict(Refusal):
    """A model of that name is loaded already."""

    status = 409


class NoRoom(Refusal):
    """There is not memory enough for another model."""

    status = 507


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the service takes.

    Attributes:
        body_bytes: of a request's body.
        records: of a request.
        tokens: of a record's pieces together, those to write included.
        queued_tokens: that wait for a model, before it refuses.
        timeout_s: from the arrival of a request to its answer.
    """

    body_bytes: int = 4 << 20
    records: int = 128
    tokens: int = 16384
    queued_tokens: int = 131072
    timeout_s: float = 30.0


@dataclass(frozen=True, kw_only=True)
class ModelStatus:
    """One version of a model.

    Attributes:
        name, version: of the request's path.
        state: "loading", "ready", "failed" or "unloading".
        task: what it answers, None while it is not known.
        default: whether requests that name no version go to it.
        reason: why it failed, else "".
    """

    name: str
    version: str
    state: str
    task: str | None
    default: bool
    reason: str = ""


class Service(Protocol):
    """The models, and their answers. All methods are called in the event loop's thread."""

    limits: Limits
    draining: bool
    """Whether the end is near: nothing new is taken."""

    @property
    def ready(self) -> bool:
        """Whether requests are taken: every model that was asked for is ready, no end is near."""

    async def predict(
        self,
        model: str,
        records: Sequence[Record],
        *,
        version: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> list[dict[str, Any]]:
        """The answers of a request's records, in their order.

        Raises:
            ArgumentError: a record or a parameter cannot be used; says which record.
            Refusal: see its classes.
        """

    def stream(
        self,
        model: str,
        record: Record,
        *,
        version: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[str]:
        """What a model of text generation writes, as soon as it is there; raises as predict.

        The last part is empty, a ``predict.writing.Ending`` that has the whole answer; no other is.
        """

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
        """How much each token of a record counts for its answer; raises as ``predict``.

        ``target``: what else is explained, as of ``Predictor.attributions``.
        """

    def predictor(self, model: str, version: str | None = None) -> Predictor:
        """The model itself, for its task, labels and tokenizer. Raises ``UnknownModel``."""

    def models(self) -> list[ModelStatus]:
        """Every version that there is, by name and version."""

    async def load(self, name: str, folder: str) -> None:
        """Load a model and make it the default of its name.

        Raises:
            Conflict: one is loaded under that name.
            NoRoom: there is too little memory for it.
            ArgumentError: the name or the folder cannot be used.
        """

    async def unload(self, name: str) -> None:
        """Let all versions of a model go, once their answers are out. Raises ``UnknownModel``."""
