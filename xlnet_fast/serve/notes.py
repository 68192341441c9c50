"""What is noted of a request while it is answered, for its log line and the metrics."""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
"""What a client may call its request."""


@dataclass
class Notes:
    """One request; never its texts.

    Attributes:
        id: the client's, or made here. client: the name of its token.
        protocol: which adapter answered. model, version: that were asked.
        records, tokens: of it.
    """

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    client: str = ""
    protocol: str = ""
    model: str = ""
    version: str = ""
    records: int = 0
    tokens: int = 0


_current: ContextVar[Notes | None] = ContextVar("xlnet_fast_request", default=None)


def current() -> Notes:
    """Those of the request that is being answered; outside of one, some that nobody reads."""
    return _current.get() or Notes(id="")


def begin(request_id: str | None) -> Notes:
    """New ones, for the task that calls; an id that is none is replaced."""
    notes = Notes()
    if request_id is not None and REQUEST_ID.fullmatch(request_id):
        notes.id = request_id
    _current.set(notes)
    return notes


def of_protocol(name: str) -> Callable[[], Awaitable[None]]:
    """A dependency of FastAPI that notes which adapter answers."""

    async def note() -> None:
        current().protocol = name

    return note
