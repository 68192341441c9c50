"""Bearer tokens from a file: one a line, ``NAME: TOKEN`` to know its requests in the log.

The file is read again when it changes. In memory there are hashes alone, and a request's is
compared with all of them in a time that does not tell which was near.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import time
from collections.abc import Callable, Collection
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from xlnet_fast.errors import ArgumentError
from xlnet_fast.serve import failures
from xlnet_fast.serve.notes import current

LEAST_CHARACTERS = 16
LOOK_S = 1.0
"""Between looks whether the file has changed."""
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")  # as RFC 6750 has them
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_log = logging.getLogger(__name__)


class Tokens:
    """Those of a file."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file.

        Raises:
            ArgumentError: it cannot be read, or holds what is no token; says which line.
        """
        self._path, self._clock = path, clock
        self._known = read(path)
        self._stamp = self._stamp_now()
        self._looked = clock()

    def client(self, token: str) -> str | None:
        """The name of a token, "" where it has none; None if it is not known."""
        self._look()
        own, found = _hash(token), None
        for digest, name in self._known:
            if hmac.compare_digest(own, digest):
                found = name
        return found

    def _look(self) -> None:
        if self._clock() - self._looked < LOOK_S:
            return
        self._looked = self._clock()
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._known = read(self._path)
        except ArgumentError as error:
            _log.error("the tokens stay as they were", extra={"reason": str(error)})
        else:
            _log.info("tokens were read", extra={"tokens": len(self._known)})

    def _stamp_now(self) -> tuple[int, ...]:
        try:
            status = os.stat(self._path)
        except OSError:
            return ()
        return status.st_ino, status.st_size, status.st_mtime_ns


def read(path: Path) -> list[tuple[bytes, str]]:
    """The tokens' hashes and names.

    Raises:
        ArgumentError: it cannot be read, or holds what is no token; says which line, not the token.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"the tokens' file {path} cannot be read: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, token = (part.strip() for part in line.rpartition(":"))
        if not _TOKEN.fullmatch(token) or (colon and not _NAME.fullmatch(name)):
            raise ArgumentError(f"line {number} of {path} is no token: expected [NAME:] TOKEN")
        if len(token) < LEAST_CHARACTERS:
            raise ArgumentError(
                f"the token of line {number} of {path} has {len(token)} characters, expected at "
                f"least {LEAST_CHARACTERS}: openssl rand -hex 32"
            )
        found.append((_hash(token), name))
    if not found:
        raise ArgumentError(f"the tokens' file {path} has no token, so nobody would be answered")
    return found


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


class Authentication:
    """ASGI middleware: 401 unless the request has a token that is known."""

    def __init__(self, app: ASGIApp, tokens: Tokens, free_paths: Collection[str]) -> None:
        """``free_paths``: what is answered to anybody."""
        self.app = app
        self.tokens = tokens
        self.free_paths = frozenset(free_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and scope["path"] not in self.free_paths:
            kind, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
            client = self.tokens.client(token.strip()) if kind.lower() == "bearer" else None
            if client is None:
                message = (
                    "expected the header Authorization: Bearer TOKEN, with a token that is known"
                )
                error = {"type": "Unauthorized", "message": message}
                headers = {"www-authenticate": "Bearer", "connection": "close"}
                await failures.shaped(401, error, headers)(scope, receive, send)
                return
            current().client = client
        await self.app(scope, receive, send)
