"""From the command to the end of the process: listen, load, serve, let what is in flight end.

On SIGTERM or SIGINT the service is no longer ready, and refuses what is new with 503 and the
connection closed; what is being answered has ``--drain`` seconds. Then threads end and the process
exits with 0. A second signal ends it at once. SIGHUP looks at the folders of models.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.serve import logs
from xlnet_fast.serve.app import create_app, free_paths
from xlnet_fast.serve.connections import ACCEPTED_AT_ONCE, Doorkeeper
from xlnet_fast.serve.options import ServeOptions
from xlnet_fast.serve.service import ModelService

LINGER_S = 0.5
"""The least time in which new requests are refused, rather than their connections."""
LAST_ANSWERS_S = 2.0
"""For the refusals of what was still waiting when the time was over."""
KEEP_ALIVE_S = 30
KEPT_PRODUCTS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
"""Of oneDNN, which prepares a product for each shape and keeps 1,024: batches have ever new shapes,
so that it would grow for hours, and none would be met again (docs/measured.md)."""
BACKLOG = 2048
"""Connections that the system holds until they are taken."""
_log = logging.getLogger(__name__)


def run(options: ServeOptions, say: Callable[[str], None] = print) -> None:
    """Serve until a signal comes.

    Args:
        say: told once, where the models are served, when they are.

    Raises:
        ArgumentError: an option or the model that was named cannot be used, or the port is taken.
        XLNetFastError: the model that was named cannot be loaded.
    """
    options.check()
    for name, value in KEPT_PRODUCTS.items():
        os.environ.setdefault(name, value)  # read at the first product
    logs.setup(options.log_level, options.log_format)
    service = ModelService(options)
    app = create_app(options, service)
    with listening(options.host, options.port) as door:
        _warn_of_strangers(options)
        keeper = Doorkeeper(free_paths())
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", ws="none", proxy_headers=False,
            server_header=False, timeout_keep_alive=KEEP_ALIVE_S, http=keeper.protocol(),
            backlog=ACCEPTED_AT_ONCE, timeout_graceful_shutdown=int(LAST_ANSWERS_S),
        )  # fmt: skip
        server = DrainingServer(config, service, options.drain, keeper)
        failure = asyncio.run(_serve(server, service, door, say))
    _end(failure)
    if failure is not None:
        raise failure


def listening(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Raises:
        ArgumentError: it cannot be listened at, for example since another process does.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        door = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ArgumentError(f"host {host} is no address of this machine: {error}") from error
    try:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(address)
        door.listen(BACKLOG)
    except OSError as error:
        door.close()
        why = error.strerror or str(error)
        raise ArgumentError(
            f"port {port} of {host} cannot be listened at ({why.lower()}): choose another --port, "
            "0 for any that is free"
        ) from error
    return door


def address_of(door: socket.socket) -> str:
    """Where a socket is found, as a URL."""
    host, port = door.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which ends when what is in flight has been answered."""

    def __init__(
        self, config: uvicorn.Config, service: ModelService, drain_s: float, keeper: Doorkeeper
    ) -> None:
        """``drain_s``: the time that there is for that. ``keeper``: of the connections."""
        super().__init__(config)
        self._keeper = keeper
        self._service = service
        self._drain_s = drain_s
        self._draining: asyncio.Task[None] | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As the base class; what is taken at once is less than what may wait to be taken."""
        asyncio.get_running_loop().set_exception_handler(self._keeper.loop_failed)
        await super().startup(sockets)
        for one in sockets or ():
            one.listen(BACKLOG)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the end, the second one is it."""
        if self._service.draining or self.loop is None:
            sys.stderr.write("xlnet-fast serve: a second signal, ending at once\n")
            sys.stderr.flush()
            os._exit(128 + sig)
        self._service.draining = True
        self.loop.call_soon_threadsafe(self.drain)

    def drain(self) -> None:
        """Begin to end; in the event loop's thread."""
        self._service.draining = True
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        begun = time.monotonic()
        _log.info("ending", extra={"in_flight": self._service.in_flight})
        try:
            while (waited := time.monotonic() - begun) < self._drain_s:
                if not self._service.in_flight and waited >= min(LINGER_S, self._drain_s):
                    break
                await asyncio.sleep(0.02)
            if self._service.in_flight:
                _log.warning("time is over", extra={"in_flight": self._service.in_flight})
                self._service.refuse_waiting()
                await asyncio.sleep(0.1)
        finally:
            self.should_exit = True


async def _serve(
    server: DrainingServer,
    service: ModelService,
    door: socket.socket,
    say: Callable[[str], None],
) -> XLNetFastError | None:
    """Serve until the end. Returns why it came, if the model could not be loaded."""
    loop = server.loop = asyncio.get_running_loop()
    failure: XLNetFastError | None = None

    async def load() -> None:
        nonlocal failure
        try:
            await service.start()
        except XLNetFastError as error:
            failure = error
            server.should_exit = True
            return
        names = sorted({one.name for one in service.models() if one.default})
        say(f"serving {', '.join(names) or 'no model yet'} at {address_of(door)}")

    if hasattr(signal, "SIGHUP"):
        loop.add_signal_handler(signal.SIGHUP, service.manager.rescan)
    loading = asyncio.ensure_future(load())
    try:
        await server.serve(sockets=[door])
    finally:
        if not loading.done():
            loading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loading
        await service.stop()
    _log.info("ended")
    return failure


def _end(failure: XLNetFastError | None) -> None:
    """Leave no thread behind: one that hangs in a load or a batch would keep the process."""
    names = [
        one.name
        for one in threading.enumerate()
        if one.name.startswith("xlnet-") and one.is_alive() and not _ends_soon(one)
    ]
    if names:
        _log.warning("threads have not ended, the process does", extra={"threads": names})
        if failure is not None:
            print(f"error: {failure}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0 if failure is None else 2)


def _ends_soon(thread: threading.Thread) -> bool:
    thread.join(1.0)
    return not thread.is_alive()


def _warn_of_strangers(options: ServeOptions) -> None:
    """Tell when anybody may ask."""
    try:
        alone = ipaddress.ip_address(options.host).is_loopback
    except ValueError:
        alone = options.host == "localhost"
    if not alone and options.tokens_file is None:
        _log.warning(
            "anybody who reaches %s is answered: --tokens-file asks for a token", options.host
        )
