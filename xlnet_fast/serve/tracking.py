"""The outermost layer: a request's id, its log line and measures, and the door at the end.

While the service is ending nothing new is taken: 503, ``Retry-After``, and the connection is
closed, so that the client comes back to another server. Health checks are still answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xlnet_fast.serve import failures, logs
from xlnet_fast.serve.contract import NotReady
from xlnet_fast.serve.limits import last_answer
from xlnet_fast.serve.notes import Notes, begin
from xlnet_fast.serve.service import ModelService

ID_HEADER = "x-request-id"
CANCELLED = 499
"""The status in logs and metrics of a request whose client has gone."""
_log = logging.getLogger(__name__)


class Tracking:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, service: ModelService, free_paths: Collection[str]) -> None:
        """``free_paths``: what is answered to the last."""
        self.app = app
        self.service = service
        self.free_paths = frozenset(free_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and note how."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()
        notes = begin(Headers(scope=scope).get(ID_HEADER))
        free = scope["path"] in self.free_paths
        answer = _Answer(self.service, notes, send)
        if not free:
            self.service.in_flight += 1
            self.service.metrics.in_flight.inc()
        try:
            if self.service.draining and not free:
                refusal = failures.response_of(NotReady("the service is about to end"))
                await last_answer(refusal, scope, receive, answer)
            else:
                await self.app(scope, receive, answer)
        except asyncio.CancelledError:
            answer.status = answer.status or CANCELLED
            raise
        except Exception as error:
            self._tell(error, notes)
            if answer.status:
                answer.status = 500
                raise  # half an answer is out: the server closes the connection
            await failures.internal()(scope, receive, answer)
        finally:
            if not free:
                self.service.in_flight -= 1
                self.service.metrics.in_flight.dec()
            self._note(scope, notes, answer.status or CANCELLED, time.perf_counter() - begun, free)

    def _note(self, scope: Scope, notes: Notes, status: int, seconds: float, free: bool) -> None:
        self.service.metrics.note_request(notes, status, seconds)
        level = logging.DEBUG if free else logging.INFO
        if not _log.isEnabledFor(level):
            return
        line: dict[str, Any] = {
            "id": notes.id,
            "method": scope["method"],
            "route": getattr(scope.get("route"), "path", ""),  # not the path: anything may be in it
            "status": status,
            "ms": round(1e3 * seconds, 1),
            "protocol": notes.protocol,
            "model": notes.model,
            "version": notes.version,
            "records": notes.records,
            "tokens": notes.tokens,
            "client": notes.client,
        }
        _log.log(level, "request", extra=line)

    @staticmethod
    def _tell(error: Exception, notes: Notes) -> None:
        _log.error(
            "a request could not be answered",
            extra={
                "id": notes.id,
                "error": type(error).__name__,
                "traceback": logs.places(error.__traceback__),
            },
        )


class _Answer:
    """``send``, which adds the headers that every answer has.

    ``status``: 0 before the answer has begun.
    """

    def __init__(self, service: ModelService, notes: Notes, send: Send) -> None:
        self._service, self._notes, self._send = service, notes, send
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[ID_HEADER] = self._notes.id
            if self._service.draining:
                headers["connection"] = "close"
        await self._send(message)
