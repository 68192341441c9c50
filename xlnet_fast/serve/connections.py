"""Connections: how many there may be, and how long one may take to say what it wants.

Beyond the most, the one that has waited longest between two requests, or within the head of one,
is closed. Where all are being answered, a few more may ask for health alone.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Collection
from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from xlnet_fast.serve import failures
from xlnet_fast.serve.contract import NotReady

HEAD_S = 10.0
"""From a connection, or the first byte of a later request, to the end of the request's head."""
FOR_HEALTH = 16
"""Connections beyond the most, for health checks."""
ACCEPTED_AT_ONCE = 32
"""Connections that are taken before one of them is looked at."""
OTHER_FILES = 64
"""Files that the process itself may have open."""
LEAST = 16
TOLD_EVERY_S = 60.0
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_log = logging.getLogger(__name__)


def most_connections() -> int:
    """As many as the process may have files open, less what it needs itself."""
    if sys.platform == "win32":
        return sys.maxsize
    import resource

    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(LEAST, files - FOR_HEALTH - ACCEPTED_AT_ONCE - OTHER_FILES)


class Doorkeeper:
    """What the connections of a server have in common.

    Attributes:
        waiting: those that answer nothing, the one that has waited longest first.
    """

    def __init__(
        self, free_paths: Collection[str], most: int | None = None, head_s: float = HEAD_S
    ) -> None:
        """``most`` connections, by default what the process may have."""
        self.free_paths = frozenset(free_paths)
        self.most = most_connections() if most is None else most
        self.head_s = head_s
        self.waiting: dict[Connection, None] = {}
        self._told = -TOLD_EVERY_S

    def protocol(self) -> type[asyncio.Protocol]:
        """For ``http`` of uvicorn's configuration."""
        return type("KeptConnection", (Connection,), {"keeper": self})

    def tell(self, what: str) -> None:
        """One line in a while: what goes wrong for thousands of connections is one fault."""
        now = time.monotonic()
        if now - self._told >= TOLD_EVERY_S:
            self._told = now
            _log.warning(what, extra={"most": self.most})

    def loop_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """For the event loop, which else has a traceback for every connection it cannot take."""
        if "accept()" in context.get("message", ""):
            self.tell(f"a connection could not be taken: {context.get('exception')}")
        else:
            loop.default_exception_handler(context)


class Connection(H11Protocol):
    """uvicorn's connection, under a doorkeeper."""

    keeper: Doorkeeper
    _head_timer: asyncio.TimerHandle | None = None
    _has_spoken = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let it in, if need be in the place of another one."""
        super().connection_made(transport)
        keeper = self.keeper
        if len(self.connections) > keeper.most:
            keeper.tell("there are too many connections: those that wait longest are closed")
            oldest = next(iter(keeper.waiting), None)
            if oldest is not None:
                oldest.let_go()
            elif len(self.connections) > keeper.most + FOR_HEALTH:
                self.let_go()
                return
            else:
                self.app = self._health_alone
        self._look()
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._end_head()
        self.keeper.waiting.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Time a head from its first byte to its end."""
        self._has_spoken = True
        super().data_received(data)
        self._look()
        if not self._waits():
            self._end_head()
        elif self._head_timer is None:
            self._begin_head()

    def on_response_complete(self) -> None:
        """The next request is waited for, by uvicorn's own time until it begins."""
        self._has_spoken = False
        super().on_response_complete()
        self._look()

    def let_go(self) -> None:
        """Close it: another one needs its place, or its time is over."""
        self.keeper.waiting.pop(self, None)
        self._end_head()
        self.connections.discard(self)
        self.transport.abort()

    def _waits(self) -> bool:
        """Whether nothing is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _look(self) -> None:
        if self._waits() and not self.transport.is_closing():
            self.keeper.waiting.setdefault(self)
        else:
            self.keeper.waiting.pop(self, None)

    def _begin_head(self) -> None:
        if not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.keeper.head_s, self._head_is_late)

    def _end_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self._waits() or self.transport.is_closing():
            return
        if self._has_spoken:
            self.transport.write(_TOO_SLOW)
        self.transport.close()

    async def _health_alone(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application where there is no room for requests."""
        if scope.get("path") in self.keeper.free_paths:
            await self.config.loaded_app(scope, receive, send)
            return
        response = failures.response_of(NotReady("there are too many connections: try again"))
        response.headers["connection"] = "close"
        await response(scope, receive, send)
