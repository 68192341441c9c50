"""The models that are served: loaded in the background, switched at once, let go when unused."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.predict.predictor import Predictor
from xlnet_fast.serve.contract import (
    Conflict,
    ModelStatus,
    NotReady,
    UnknownModel,
)
from xlnet_fast.serve.loading import Loaded, load
from xlnet_fast.serve.options import NAME, ServeOptions
from xlnet_fast.serve.versions import (
    FIRST,
    Fingerprint,
    Found,
    find,
    found_versions,
    is_checkpoint,
    name_of,
)
from xlnet_fast.serve.worker import Observer, Worker

_log = logging.getLogger(__name__)
CLOSE_S = 10.0
"""For a batch that is being computed when its model is let go."""


@dataclass(eq=False)
class Version:
    """One version of a model, whatever its state.

    Attributes:
        name, version: of the model. source: folder or Hub id. fingerprint: of its files.
        state: as in ``ModelStatus``. reason: why it is in it, where that needs saying.
        predictor, worker: when it is loaded. users: requests that are being answered by it.
        unused: set while there is none.
    """

    name: str
    version: str
    source: str
    fingerprint: Fingerprint = ()
    state: str = "loading"
    reason: str = ""
    predictor: Predictor | None = None
    worker: Worker | None = None
    users: int = 0
    unused: asyncio.Event = field(default_factory=asyncio.Event)

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """While a request is answered; it is not let go before."""
        self.users += 1
        self.unused.clear()
        try:
            yield
        finally:
            self.users -= 1
            if not self.users:
                self.unused.set()


@dataclass(eq=False)
class Model:
    """The versions of one name; ``default`` answers where a request names none.

    ``watched``: its folder is looked at. Else it was loaded by name, and is kept until told.
    """

    name: str
    watched: bool
    versions: dict[str, Version] = field(default_factory=dict)
    default: Version | None = None
    leaving: list[Version] = field(default_factory=list)


class Manager:
    """Models by name. All methods are called in the event loop's thread.

    Attributes:
        settled: set once the models that were asked for are loaded, or have failed.
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
        self._options = options
        self._observer, self._changed, self._noted = observer, changed, noted
        self._models: dict[str, Model] = {}
        self._dismissed: set[str] = set()
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "xlnet-loading")
        self._tasks: set[asyncio.Task[None]] = set()
        self.settled = asyncio.Event()
        self._root_lost = False

    # What requests ask

    def lookup(self, name: str, version: str | None = None) -> Version:
        """A version that answers; by default the newest that proved itself.

        Raises:
            UnknownModel: there is none of that name or number.
            NotReady: it is being loaded, or has failed.
        """
        model = self._models.get(name)
        if model is None:
            raise UnknownModel(f"there is no model {name[:128]!r}")
        found = model.default if version is None else model.versions.get(version)
        if found is None and version is not None:
            raise UnknownModel(f"{name} has no version {version[:32]!r}")
        if found is None:
            failed = next((v for v in model.versions.values() if v.state == "failed"), None)
            raise NotReady(
                f"{name} could not be loaded" if failed else f"{name} is being loaded: try again"
            )
        if found.state != "ready" or found.worker is None or found.predictor is None:
            raise NotReady(f"{name} is {found.state}")
        return found

    def statuses(self) -> list[ModelStatus]:
        """Every version that there is, by name and version."""
        return [
            ModelStatus(
                name=one.name,
                version=one.version,
                state=one.state,
                task=None if one.predictor is None else one.predictor.task.name,
                default=one is model.default,
                reason=one.reason,
            )
            for _, model in sorted(self._models.items())
            for one in sorted(
                [*model.versions.values(), *model.leaving], key=lambda one: int(one.version)
            )
        ]

    def loaded(self) -> list[Version]:
        """The versions that answer."""
        return [
            one
            for model in self._models.values()
            for one in [*model.versions.values(), *model.leaving]
            if one.worker is not None
        ]

    @property
    def ready(self) -> bool:
        """Whether every model has a default that answers."""
        return self.settled.is_set() and all(
            model.default is not None
            and model.default.state == "ready"
            and model.default.worker is not None
            and model.default.worker.alive
            for model in self._models.values()
        )

    # What is loaded and let go

    async def start(self) -> None:
        """Load what the options name; returns when all is settled.

        Raises:
            ArgumentError, XLNetFastError: the one model that was named cannot be loaded.
        """
        source = self._options.models
        assert source is not None
        folder = Path(source).expanduser()
        if folder.is_dir() and not is_checkpoint(folder):
            if self._options.task is not None or self._options.tokenizer is not None:
                _log.info("the task and the tokenizer are those of every model")
            await self.scan()
            self._tasks.add(asyncio.create_task(self._watch()))
        else:
            name = self._options.name or name_of(source)
            model = self._models[name] = Model(name, watched=False)
            await self._load(model, Version(name, FIRST, source), raising=True)
        self.settled.set()

    async def stop(self) -> bool:
        """Let all models go. Returns whether every thread has ended."""
        for task in self._tasks:
            task.cancel()
        ended = []
        for one in self.loaded():
            assert one.worker is not None
            refusal = NotReady("the service is ending")
            ended.append(await asyncio.to_thread(one.worker.close, refusal, CLOSE_S))
        self._thread.shutdown(wait=False, cancel_futures=True)
        return all(ended)

    def rescan(self) -> None:
        """Look at the folders now, and try again what has failed; for SIGHUP."""
        for model in self._models.values():
            for one in model.versions.values():
                if one.state == "failed":
                    one.fingerprint = ()
        self._dismissed.clear()
        if self._watching:
            self._spawn(self.scan())

    @property
    def _watching(self) -> bool:
        folder = Path(self._options.models or "").expanduser()
        return folder.is_dir() and not is_checkpoint(folder)

    async def _watch(self) -> None:
        while self._options.poll:
            await asyncio.sleep(self._options.poll)
            try:
                await self.scan()
            except Exception:  # or nobody would look any more
                _log.exception("the models' folder could not be looked at")

    async def scan(self) -> None:
        """Look at the folder of models, load what is new, let go what is not wanted any more."""
        root = Path(self._options.models or "").expanduser()
        async with self._lock:
            try:
                found = await asyncio.to_thread(self._find, root)
            except OSError as error:
                if not self._root_lost:
                    _log.error("%s cannot be read, models stay as they are: %s", root, error)
                self._root_lost = True
                return
            self._root_lost = False
            for name, versions in found.items():
                model = self._models.get(name)
                if name in self._dismissed or (model is not None and not model.watched):
                    continue
                if model is None:
                    model = self._models[name] = Model(name, watched=True)
                await self._reconcile(model, versions)
            for name, model in list(self._models.items()):
                if model.watched and name not in found:
                    self._remove(model)

    def _find(self, root: Path) -> dict[str, list[Found]]:
        """As ``find``; a folder of versions alone is one model."""
        import time

        found = find(root)
        if found and all(name.isdecimal() for name in found):
            name = self._options.name or name_of(str(root))
            return {name: found_versions(name, root, time.time())}
        return found

    async def _reconcile(self, model: Model, found: list[Found]) -> None:
        """Bring a model's versions to what its folder has: the newest that can be read."""
        by_version = {one.version: one for one in found}
        while True:
            self._note_unread(model, found)
            wanted = [one for one in found if self._may_be_wanted(model, one)][: self._options.keep]
            todo = [one for one in wanted if not self._is_current(model, one)]
            if not todo:
                break
            one = todo[0]
            fresh = Version(model.name, one.version, str(one.folder), one.fingerprint)
            await self._load(model, fresh)
        ready = [model.versions[one.version] for one in wanted]
        if ready:
            self._switch(model, ready[0])
            keep = {one.version for one in wanted}
        else:
            keep = {v.version for v in model.versions.values() if v is model.default}
        for version, old in list(model.versions.items()):
            gone = version not in by_version
            if old.state == "ready" and version not in keep:
                self._let_go(model, old)
            elif gone and old.state != "ready" and old is not model.default:
                del model.versions[version]
        self._changed()

    def _note_unread(self, model: Model, found: list[Found]) -> None:
        """Tell the state of what is still being written, or is damaged."""
        for one in found:
            there = model.versions.get(one.version)
            if not (one.unfinished or one.damaged) or (there and there.state == "ready"):
                continue
            fresh = Version(model.name, one.version, str(one.folder), one.fingerprint)
            fresh.state, fresh.reason = "loading", one.unfinished
            if one.damaged:
                fresh.state, fresh.reason = "failed", one.damaged
                if there is None or there.state != "failed":
                    self._tell_failure(fresh)
            model.versions[one.version] = fresh

    def _may_be_wanted(self, model: Model, one: Found) -> bool:
        """Whether a version is whole, and has not failed as it lies there."""
        there = model.versions.get(one.version)
        if there is not None and there.state == "ready" and (one.unfinished or one.damaged):
            return True  # what is loaded stays while its folder is rewritten
        if one.unfinished or one.damaged:
            return False
        failed = there is not None and there.state == "failed"
        return not (failed and there and there.fingerprint == one.fingerprint)

    def _is_current(self, model: Model, one: Found) -> bool:
        there = model.versions.get(one.version)
        if there is None or there.state != "ready":
            return False
        return bool(one.unfinished or one.damaged) or there.fingerprint == one.fingerprint

    async def _load(self, model: Model, fresh: Version, raising: bool = False) -> None:
        """Load a version; when it has proved itself it takes its place, else the old one stays."""
        name, before = fresh.name, model.versions.get(fresh.version)
        if before is None or before.state != "ready":
            model.versions[fresh.version] = fresh
        self._changed()
        like = model.default.predictor if model.default is not None else None
        loop = asyncio.get_running_loop()
        work = functools.partial(load, fresh.source, self._options, like)
        try:
            ready = await loop.run_in_executor(self._thread, work)
        except Exception as error:
            fresh.state, fresh.reason = "failed", _sentence(error)
            if before is not None and before.state == "ready":
                before.fingerprint = fresh.fingerprint  # it is not tried again as it is
                before.reason = f"its folder has changed, and cannot be loaded: {fresh.reason}"
            self._tell_failure(fresh)
            self._changed()
            if raising:
                if isinstance(error, XLNetFastError):
                    raise
                raise XLNetFastError(f"{name} cannot be loaded: {fresh.reason}") from error
            return
        self._start_worker(model, fresh, ready)
        model.versions[fresh.version] = fresh
        if before is not None and before.worker is not None:
            if model.default is before:
                model.default = fresh
            self._let_go(model, before)
        if not model.watched:
            self._switch(model, fresh)
        self._noted(name, "ok")
        self._changed()
        _log.info("loaded", extra={"model": name, "version": fresh.version})

    def _start_worker(self, model: Model, fresh: Version, ready: Loaded) -> None:
        loop = asyncio.get_running_loop()

        def failed(reason: str) -> None:
            def note() -> None:
                fresh.state, fresh.reason = "failed", reason
                self._changed()

            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(note)

        fresh.predictor = ready.predictor
        fresh.worker = Worker(
            fresh.name,
            ready.run,
            ready.check,
            budget=self._options.batch_tokens,
            limit=self._options.queue_tokens,
            threads=self._options.threads,
            observer=self._observer(fresh.name),
            on_failure=failed,
        )
        fresh.state = "ready"

    def _switch(self, model: Model, version: Version) -> None:
        """Later requests that name no version go to it."""
        if model.default is not version:
            model.default = version
            _log.info("default", extra={"model": model.name, "version": version.version})

    def _let_go(self, model: Model, old: Version) -> None:
        """Unload a version when the last of its requests is answered."""
        if model.versions.get(old.version) is old:
            del model.versions[old.version]
        old.state = "unloading"
        model.leaving.append(old)
        self._changed()
        self._spawn(self._unload(model, old))

    async def _unload(self, model: Model, old: Version) -> None:
        if old.users:
            await old.unused.wait()
        if old.worker is not None:
            refusal = NotReady(f"{old.name} has been unloaded")
            await asyncio.to_thread(old.worker.close, refusal, CLOSE_S)
        old.worker = old.predictor = None
        model.leaving.remove(old)
        await asyncio.to_thread(gc.collect)
        self._changed()
        _log.info("unloaded", extra={"model": old.name, "version": old.version})

    def _remove(self, model: Model) -> None:
        """Let all versions of a model go; its name is free at once."""
        del self._models[model.name]
        model.default = None
        for one in list(model.versions.values()):
            if one.worker is not None:
                self._let_go(model, one)
        self._changed()

    # What SageMaker asks for

    async def load_named(self, name: str, folder: str) -> None:
        """See ``Service.load``."""
        if not NAME.fullmatch(name):
            raise ArgumentError(
                "the model's name must be of letters, digits, '.', '_' and '-', at most 128"
            )
        if name in self._models:
            raise Conflict(f"{name} is loaded already: unload it first")
        path = self._allowed(folder)
        model = self._models[name] = Model(name, watched=False)
        try:
            async with self._lock:
                await self._load(model, Version(name, FIRST, str(path)), raising=True)
        except BaseException:
            if self._models.get(name) is model:
                del self._models[name]
            raise
        finally:
            self._changed()

    def unload_named(self, name: str) -> None:
        """See ``Service.unload``; a model that lies in the watched folder stays away."""
        model = self._models.get(name)
        if model is None:
            raise UnknownModel(f"there is no model {name[:128]!r}")
        if model.watched:
            self._dismissed.add(name)
        self._remove(model)

    def _allowed(self, folder: str) -> Path:
        """The real path of a folder that a request named.

        Raises:
            ArgumentError: it is not below the folder from which requests may load.
        """
        root = self._options.load_from
        if root is None:
            raise ArgumentError(
                "models are loaded by request only where the service was started with --load-from"
            )
        try:
            path = Path(folder).resolve()
            inside = path.is_relative_to(root.resolve())
        except (OSError, ValueError, RuntimeError):
            inside = False
        if not inside or not path.is_dir():
            raise ArgumentError("the model's folder is not below that of --load-from")
        return path

    def _spawn(self, work: Mapping[str, str] | object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _tell_failure(self, one: Version) -> None:
        self._noted(one.name, "failed")
        _log.error(
            "could not be loaded",
            extra={"model": one.name, "version": one.version, "reason": one.reason},
        )


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, XLNetFastError) else f"{type(error).__name__}: {text}"
