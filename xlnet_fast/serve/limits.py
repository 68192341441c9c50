"""What a request may be, before anything of it is looked at: its size, its depth, how many at once.

A body is read here, as a whole, before the application runs: one that is too long is refused when
that is known, told or counted, and a slow one when its time is over. From then on the client is
watched: when it goes away, what computes for it is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Collection
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.serve import failures
from xlnet_fast.serve.contract import Overloaded, Refusal, TooLarge
from xlnet_fast.serve.options import ServeOptions

MAX_DEPTH = 32
"""Of a body's JSON: arrays and objects in each other."""
BODIES_AT_ONCE = 64
"""Bodies of full length that are held together; shorter ones are more."""
LINGER_S, LINGER_BYTES = 2.0, 32 << 20
"""How long, and how much of, a body is read after it was refused."""
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class TooSlow(Refusal):
    """The body has not arrived in time."""

    status = 408


class Encoded(Refusal):
    """The body is compressed."""

    status = 415


class Disconnected(Exception):
    """The client has gone before its request was there."""


@dataclass
class _Held:
    """What has been read of a body, and whether there is more."""

    bytes: int = 0
    more: bool = True


class RequestLimits:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, options: ServeOptions, free_paths: Collection[str]) -> None:
        """``free_paths``: health checks, which are answered however many requests there are."""
        self.app = app
        self.options = options
        self.free_paths = frozenset(free_paths)
        self._requests = 0
        self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        if scope["type"] != "http" or scope["path"] in self.free_paths:
            await self.app(scope, receive, send)
            return
        held = _Held()
        refusal: XLNetFastError
        self._requests += 1
        try:
            self._admit(scope)
            work = self._body(receive, held)
            body = await asyncio.wait_for(work, self.options.timeout)
            _check_depth(scope, body)
        except Disconnected:
            return
        except (asyncio.TimeoutError, TimeoutError):
            refusal = TooSlow("the body has not arrived in time")
        except XLNetFastError as error:
            refusal = error
        else:
            await self._watched(body, scope, receive, send)
            return
        finally:
            self._requests -= 1
            self._bytes -= held.bytes
        response = failures.response_of(refusal)
        await last_answer(response, scope, receive, send, more=held.more)

    def _admit(self, scope: Scope) -> None:
        """What can be told before the body.

        Raises:
            Overloaded: there are too many requests. TooLarge: the body will be too long.
            Encoded: it is compressed.
        """
        if self._requests > self.options.max_requests:
            raise Overloaded(f"{self.options.max_requests} requests are being answered: try again")
        told = Headers(scope=scope).get("content-length", "")
        if told.isdecimal() and int(told[:20]) > self.options.body_bytes:
            raise self._too_large()
        coding = Headers(scope=scope).get("content-encoding", "identity").lower()
        if coding != "identity":
            raise Encoded(f"Content-Encoding is {coding[:40]!r}, expected the body as it is")

    async def _body(self, receive: Receive, held: _Held) -> bytes:
        """The whole body.

        Args:
            held: of this request, counted up.

        Raises:
            TooLarge: it is too long. Overloaded: other bodies take the room.
            Disconnected: the client has gone.
        """
        parts = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            part = message.get("body", b"")
            held.more = message.get("more_body", False)
            held.bytes += len(part)
            self._bytes += len(part)
            if held.bytes > self.options.body_bytes:
                raise self._too_large()
            if self._bytes > BODIES_AT_ONCE * self.options.body_bytes:
                raise Overloaded("the requests that are here take all the room: try again")
            parts.append(part)
            if not held.more:
                return b"".join(parts)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is longer than {self.options.body_bytes} bytes")

    async def _watched(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, and cancel it when the client goes away."""
        gone, sent = asyncio.Event(), asyncio.Event()
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        async def noted_send(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                sent.set()  # the server then says that the client has gone
            await send(message)

        answer = asyncio.ensure_future(self.app(scope, replay, noted_send))
        watcher = asyncio.ensure_future(watch())
        try:
            await asyncio.wait((answer, watcher), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() and not sent.is_set():
                answer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await answer
        finally:
            watcher.cancel()
            if not answer.done():
                answer.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await answer


async def last_answer(
    response: Response, scope: Scope, receive: Receive, send: Send, *, more: bool = True
) -> None:
    """Answer without the body and close the connection: what follows would be the rest of it.

    Some of that rest is read and dropped after the answer: a connection that is closed with bytes
    unread is reset, and then the client may never see the answer.

    Args:
        more: whether the body may go on.
    """
    response.headers["connection"] = "close"
    if Headers(scope=scope).get("expect"):
        more = False  # the client sends its body only when it is asked to

    async def lingering(message: Message) -> None:
        if not more or message["type"] != "http.response.body":
            await send(message)
            return
        await send({**message, "more_body": True})
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
            await asyncio.wait_for(_drop(receive), LINGER_S)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    await response(scope, receive, lingering)


async def _drop(receive: Receive) -> None:
    """Read a body to its end, or ``LINGER_BYTES`` of it, and keep nothing."""
    dropped = 0
    while dropped < LINGER_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
        dropped += len(message.get("body", b""))


def _check_depth(scope: Scope, body: bytes) -> None:
    """Refuse JSON that is nested too deeply, before a parser goes down into it.

    Raises:
        ArgumentError: it is.
    """
    if "json" not in Headers(scope=scope).get("content-type", "json").lower():
        return
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and is_deep(body):
        raise ArgumentError(f"the body's JSON is nested more than {MAX_DEPTH} deep")


def is_deep(body: bytes) -> bool:
    """Whether arrays and objects of JSON are in each other more than ``MAX_DEPTH`` deep.

    Each turn takes the innermost ones away. What is no JSON may be called either.
    """
    brackets = _STRINGS.sub(b"", body).translate(None, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return brackets.count(b"[") + brackets.count(b"{") > 0
