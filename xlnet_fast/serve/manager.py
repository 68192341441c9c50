"""The models that are served: loaded in the background, switched at once, let go when unused."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.export.record import FILE as EXPORTED
from xlnet_fast.serve.contract import Conflict, ModelStatus, NotReady, UnknownModel
from xlnet_fast.serve.loading import Loaded, load
from xlnet_fast.serve.model import Model, Version
from xlnet_fast.serve.options import NAME, ServeOptions
from xlnet_fast.serve.versions import FIRST, is_checkpoint, name_of
from xlnet_fast.serve.watching import Watcher
from xlnet_fast.serve.worker import Observer, Worker

_log = logging.getLogger(__name__)
CLOSE_S = 10.0
"""For a batch that is being computed when its model is let go."""


class Manager:
    """Models by name. All methods are called in the event loop's thread.

    Attributes:
        options: of the service. models: by name.
        settled: set once the models that were asked for are loaded, or have failed.
        lock: held by who loads or unloads.
    """

    def __init__(
        self,
        options: ServeOptions,
        observer: Callable[[str], Observer] = lambda name: Observer(),
        changed: Callable[[], None] = lambda: None,
        noted: Callable[[str, str], None] = lambda name, result: None,
    ) -> None:
        """Nothing is loaded yet.

        Args:
            options: of the service. observer: of a model's batches, by its name.
            changed: called when a state has changed.
            noted: called with a model's name and "ok" or "failed" after each load.
        """
        self.options = options
        self.models: dict[str, Model] = {}
        self.settled = asyncio.Event()
        self.lock = asyncio.Lock()
        self._observer, self.changed, self._noted = observer, changed, noted
        self._thread = ThreadPoolExecutor(1, "xlnet-loading")
        self._tasks: set[asyncio.Future[Any]] = set()
        self._watcher: Watcher | None = None

    # What requests ask

    def lookup(self, name: str, version: str | None = None) -> Version:
        """A version that answers; by default the newest that proved itself.

        Raises:
            UnknownModel: there is none of that name or number.
            NotReady: it is being loaded, or has failed.
        """
        model = self.models.get(name)
        if model is None:
            raise UnknownModel(f"there is no model {name[:128]!r}")
        found = model.default if version is None else model.versions.get(version)
        if found is None and version is not None:
            raise UnknownModel(f"{name} has no version {version[:32]!r}")
        if found is None or not found.answers:
            failed = any(one.state == "failed" for one in model.versions.values())
            why = "has failed" if failed else "is being loaded: try again"
            raise NotReady(f"{name} {why}")
        return found

    def statuses(self) -> list[ModelStatus]:
        """Every version that there is, by name and version."""
        return [
            one.status(default=one is model.default)
            for _, model in sorted(self.models.items())
            for one in model.all()
        ]

    def loaded(self) -> list[Version]:
        """The versions that hold a model."""
        return [
            one for model in self.models.values() for one in model.all() if one.worker is not None
        ]

    @property
    def ready(self) -> bool:
        """Whether every model has a default that answers."""
        return self.settled.is_set() and all(
            model.default is not None and model.default.answers for model in self.models.values()
        )

    # The life of the service

    async def start(self) -> None:
        """Load what the options name; returns when all is settled.

        Raises:
            ArgumentError, XLNetFastError: the one model that was named cannot be loaded.
        """
        source = self.options.models
        assert source is not None
        folder = Path(source).expanduser()
        if (folder / EXPORTED).is_file():
            raise ArgumentError(
                f"{source} is what xlnet-fast export made, and serve takes checkpoints: give the "
                "one that it was made of"
            )
        if folder.is_dir() and not is_checkpoint(folder):
            self._watcher = Watcher(self, folder)
            await self._watcher.scan_settled(at_start=True)
            self.spawn(self._watcher.watch(self.options.poll))
        else:
            name = self.options.name or name_of(source)
            model = self.models[name] = Model(name, watched=False)
            await self.load(model, Version(name, FIRST, source), raising=True)
        self.settled.set()

    async def stop(self) -> bool:
        """Let all models go. Returns whether every inference thread has ended."""
        for task in list(self._tasks):
            task.cancel()
        refusal = NotReady("the service is ending")
        closing = [
            asyncio.to_thread(one.worker.close, refusal, CLOSE_S)
            for one in self.loaded()
            if one.worker is not None
        ]
        ended = await asyncio.gather(*closing)
        self._thread.shutdown(wait=False, cancel_futures=True)
        return all(ended)

    def rescan(self) -> None:
        """Look at the folders now, and try again what has failed; for SIGHUP."""
        for model in self.models.values():
            for one in model.all():
                if one.state == "failed":
                    one.fingerprint = ()
            failed = model.default is not None and model.default.state == "failed"
            if failed and not model.watched and model.default is not None:
                fresh = Version(model.name, model.default.version, model.default.source)
                self.spawn(self.load(model, fresh))
        if self._watcher is not None:
            self._watcher.dismissed.clear()
            self.spawn(self._watcher.scan_settled())

    # What is loaded and let go

    async def load(self, model: Model, fresh: Version, raising: bool = False) -> None:
        """Load a version; when it has proved itself it takes its place, else the old one stays.

        Raises:
            XLNetFastError: it cannot be loaded, where ``raising``; else that is told in its state.
        """
        before = model.versions.get(fresh.version)
        if before is None or not before.answers:
            model.versions[fresh.version] = fresh
        self.changed()
        like = model.default.predictor if model.default is not None else None
        loop = asyncio.get_running_loop()
        work = functools.partial(load, fresh.source, self.options, like)
        try:
            ready = await loop.run_in_executor(self._thread, work)
        except Exception as error:
            self._note_failure(fresh, before, error)
            if not raising:
                return
            if isinstance(error, XLNetFastError):
                raise
            raise XLNetFastError(f"{fresh.name} cannot be loaded: {fresh.reason}") from error
        self._start_worker(fresh, ready)
        model.versions[fresh.version] = fresh
        self._noted(fresh.name, "ok")
        _log.info("loaded", extra={"model": fresh.name, "version": fresh.version})
        if not model.watched or model.default is before:
            self.switch(model, fresh)
        if before is not None:
            self.let_go(model, before)
        self.changed()

    def switch(self, model: Model, version: Version) -> None:
        """Later requests that name no version go to it."""
        old = model.default
        if old is version:
            return
        model.default = version
        _log.info("default", extra={"model": model.name, "version": version.version})
        if old is not None and old.state == "failed":
            # What is told of it stays; its memory does not.
            if model.versions.get(old.version) is old:
                told = Version(old.name, old.version, old.source, old.fingerprint)
                told.state, told.reason = old.state, old.reason
                model.versions[old.version] = told
            self.let_go(model, old)
        self.changed()

    def let_go(self, model: Model, old: Version) -> None:
        """Unload a version when the last of its requests is answered."""
        if model.versions.get(old.version) is old:
            del model.versions[old.version]
        if old.worker is None or old in model.leaving:
            return
        old.state = "unloading"
        model.leaving.append(old)
        self.changed()
        self.spawn(self._unload(model, old))

    def remove(self, model: Model) -> None:
        """Let all versions of a model go; its name is free at once."""
        if self.models.get(model.name) is model:
            del self.models[model.name]
        model.default = None
        for one in model.all():
            self.let_go(model, one)
        self.changed()

    async def _unload(self, model: Model, old: Version) -> None:
        if old.users:
            await old.unused.wait()
        if old.worker is not None:
            refusal = NotReady(f"{old.name} has been unloaded")
            await asyncio.to_thread(old.worker.close, refusal, CLOSE_S)
        old.worker = old.predictor = None
        model.leaving.remove(old)
        await asyncio.to_thread(gc.collect)
        self.changed()
        _log.info("unloaded", extra={"model": old.name, "version": old.version})

    def _start_worker(self, fresh: Version, ready: Loaded) -> None:
        loop = asyncio.get_running_loop()

        def note(reason: str) -> None:
            fresh.state, fresh.reason = "failed", reason
            self.changed()

        def failed(reason: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(note, reason)

        fresh.predictor = ready.predictor
        fresh.worker = Worker(
            fresh.name,
            ready.run,
            ready.check,
            budget=self.options.batch_tokens,
            limit=self.options.queue_tokens,
            threads=self.options.threads,
            observer=self._observer(fresh.name),
            on_failure=failed,
        )
        fresh.state = "ready"

    def _note_failure(self, fresh: Version, before: Version | None, error: Exception) -> None:
        fresh.state, fresh.reason = "failed", _sentence(error)
        if before is not None and before.answers:
            before.fingerprint = fresh.fingerprint  # it is not tried again as it lies there
            before.reason = f"its folder has changed, and cannot be loaded: {fresh.reason}"
        self.tell_failure(fresh)

    def tell_failure(self, one: Version) -> None:
        """A version could not be loaded: in the log and the metrics."""
        self._noted(one.name, "failed")
        self.changed()
        _log.error(
            "could not be loaded",
            extra={"model": one.name, "version": one.version, "reason": one.reason},
        )

    # What requests may load and unload

    async def load_named(self, name: str, folder: str) -> None:
        """See ``Service.load``."""
        if not NAME.fullmatch(name):
            raise ArgumentError(
                "the model's name must be of letters, digits, '.', '_' and '-', at most 128"
            )
        if name in self.models:
            raise Conflict(f"{name} is loaded already: unload it first")
        path = self._allowed(folder)
        model = self.models[name] = Model(name, watched=False)
        work = asyncio.ensure_future(self._load_named(model, Version(name, FIRST, str(path))))
        self._tasks.add(work)
        work.add_done_callback(self._tasks.discard)
        await asyncio.shield(work)  # whoever asked may go: what is half loaded is ended here

    async def _load_named(self, model: Model, fresh: Version) -> None:
        try:
            async with self.lock:
                await self.load(model, fresh, raising=True)
            if self.models.get(model.name) is not model:  # unloaded meanwhile
                self.remove(model)
        except BaseException:
            if self.models.get(model.name) is model:
                del self.models[model.name]
            self.changed()
            raise

    def unload_named(self, name: str) -> None:
        """See ``Service.unload``; a model that lies in the watched folder stays away."""
        model = self.models.get(name)
        if model is None:
            raise UnknownModel(f"there is no model {name[:128]!r}")
        if model.watched and self._watcher is not None:
            self._watcher.dismissed.add(name)
        self.remove(model)

    def _allowed(self, folder: str) -> Path:
        """The real path of a folder that a request named.

        Raises:
            ArgumentError: it is not below the folder from which requests may load.
        """
        root = self.options.load_from
        if root is None:
            raise ArgumentError(
                "models are loaded by request only where the service was started with --load-from"
            )
        try:
            path = Path(folder).resolve()
            allowed = path.is_relative_to(root.resolve()) and path.is_dir()
        except (OSError, ValueError, RuntimeError):
            allowed = False
        if not allowed:
            raise ArgumentError("the model's folder is not one below that of --load-from")
        return path

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it in the background, as long as the service runs."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("work in the background has failed", exc_info=task.exception())


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, XLNetFastError) else f"{type(error).__name__}: {text}"
