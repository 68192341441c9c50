"""The folder of models, looked at again and again: what is served follows what lies there."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from xlnet_fast.serve.model import Model, Version
from xlnet_fast.serve.options import VERSION
from xlnet_fast.serve.versions import Found, find, found_versions, name_of

if TYPE_CHECKING:
    from xlnet_fast.serve.manager import Manager

_log = logging.getLogger(__name__)


class Watcher:
    """Brings a manager's models to what a folder has.

    Attributes:
        dismissed: names that were unloaded by request, and stay away.
    """

    def __init__(self, manager: Manager, root: Path) -> None:
        """``root``: of folders NAME/VERSION/, NAME/, or VERSION/ of one model."""
        self.dismissed: set[str] = set()
        self._manager, self._root = manager, root
        self._lost = False

    async def watch(self, every_s: float) -> None:
        """Look every so many seconds; with 0 never."""
        while every_s:
            await asyncio.sleep(every_s)
            try:
                await self.scan()
            except Exception:  # or nobody would look any more
                _log.exception("the folder of models could not be looked at")

    async def scan(self) -> None:
        """Load what is new, and let go what is no longer wanted."""
        async with self._manager.lock:
            try:
                found = await asyncio.to_thread(self._find)
            except OSError as error:
                if not self._lost:
                    _log.error("%s cannot be read, models stay as they are: %s", self._root, error)
                self._lost = True
                return
            self._lost = False
            for name, versions in found.items():
                model = self._manager.models.get(name)
                if name in self.dismissed or (model is not None and not model.watched):
                    continue
                if model is None:
                    model = self._manager.models[name] = Model(name, watched=True)
                await self._reconcile(model, versions)
            for name, model in list(self._manager.models.items()):
                if model.watched and name not in found:
                    self._manager.remove(model)

    def _find(self) -> dict[str, list[Found]]:
        """As ``find``; a folder that has versions alone is one model."""
        found = find(self._root)
        if found and all(VERSION.fullmatch(name) for name in found):
            name = self._manager.options.name or name_of(str(self._root))
            return {name: found_versions(name, self._root, time.time())}
        return found

    async def _reconcile(self, model: Model, found: list[Found]) -> None:
        """Serve the newest versions that can be loaded; until they are, what was served before."""
        manager = self._manager
        while True:
            self._note_unread(model, found)
            usable = [one for one in found if _is_usable(model, one)]
            wanted = usable[: manager.options.keep]
            fresh = next((one for one in wanted if not _is_current(model, one)), None)
            if fresh is None:
                break
            await manager.load(model, _to_load(model, fresh))
            if manager.models.get(model.name) is not model:  # unloaded meanwhile
                manager.remove(model)
                return
        if wanted:
            manager.switch(model, model.versions[wanted[0].version])
        keep = {one.version for one in wanted} if wanted else {one.version for one in found}
        there = {one.version for one in found}
        for version, old in list(model.versions.items()):
            if old is model.default or version in keep:
                continue
            if old.worker is not None or version not in there:
                manager.let_go(model, old)
        manager.changed()

    def _note_unread(self, model: Model, found: list[Found]) -> None:
        """Tell the state of what is still being written, or is damaged."""
        for one in found:
            there = model.versions.get(one.version)
            holds = there is not None and there.worker is not None
            if holds or not (one.unfinished or one.damaged):
                continue
            fresh = _to_load(model, one)
            fresh.state = "failed" if one.damaged else "loading"
            fresh.reason = one.damaged or one.unfinished
            model.versions[one.version] = fresh
            if one.damaged and (there is None or there.state != "failed"):
                self._manager.tell_failure(fresh)


def _to_load(model: Model, one: Found) -> Version:
    return Version(model.name, one.version, str(one.folder), one.fingerprint)


def _is_usable(model: Model, one: Found) -> bool:
    """Whether a version answers already, or is whole and has not failed as it lies there."""
    there = model.versions.get(one.version)
    if one.unfinished or one.damaged:
        return there is not None and there.answers  # while its folder is rewritten it stays
    failed = there is not None and (there.state == "failed" or _has_died(there))
    return not (failed and there is not None and there.fingerprint == one.fingerprint)


def _is_current(model: Model, one: Found) -> bool:
    there = model.versions.get(one.version)
    if there is None or not there.answers:
        return False
    return bool(one.unfinished or one.damaged) or there.fingerprint == one.fingerprint


def _has_died(one: Version) -> bool:
    return one.worker is not None and not one.worker.alive
