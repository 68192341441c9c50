"""A model's versions, as the service holds them: what each is, and who uses it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from xlnet_fast.predict.predictor import Predictor
from xlnet_fast.serve.contract import ModelStatus
from xlnet_fast.serve.versions import Fingerprint
from xlnet_fast.serve.worker import Worker


@dataclass(eq=False)
class Version:
    """One version of a model, whatever its state.

    Attributes:
        name, version: of the model. source: folder or Hub id. fingerprint: of its files.
        state: as in ``ModelStatus``. reason: why it is in it, where that needs saying.
        predictor, worker: while it is loaded. users: requests that are being answered by it.
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

    @property
    def answers(self) -> bool:
        """Whether it can be asked."""
        return self.state == "ready" and self.worker is not None and self.worker.alive

    def status(self, default: bool) -> ModelStatus:
        """As protocols know it."""
        return ModelStatus(
            name=self.name,
            version=self.version,
            state=self.state,
            task=None if self.predictor is None else self.predictor.task.name,
            default=default,
            reason=self.reason,
        )


@dataclass(eq=False)
class Model:
    """The versions of one name.

    Attributes:
        watched: whether its folder is looked at; else it was loaded by name, and stays until told.
        versions: by number. default: that answers where a request names none.
        leaving: those that only end what they have begun.
    """

    name: str
    watched: bool
    versions: dict[str, Version] = field(default_factory=dict)
    default: Version | None = None
    leaving: list[Version] = field(default_factory=list)

    def all(self) -> list[Version]:
        """Every version, by number."""
        found = {id(one): one for one in (*self.versions.values(), *self.leaving)}
        if self.default is not None:
            found[id(self.default)] = self.default
        return sorted(found.values(), key=lambda one: int(one.version))
