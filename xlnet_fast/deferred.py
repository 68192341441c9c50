"""What waits for a module that somebody may import, or nobody: it costs nothing until then."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def when_imported(name: str, run: Callable[[], object]) -> None:
    """Call ``run`` now if the module of that name was imported, else right after its import."""
    if name in sys.modules:
        run()
    else:
        sys.meta_path.insert(0, _Finder(name, run))


class _Finder(MetaPathFinder):
    """Asks the other finders for its one module, and has ``run`` called behind its code."""

    def __init__(self, name: str, run: Callable[[], object]) -> None:
        self.name, self.run = name, run

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As any finder's."""
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is None or spec.loader is None:
            sys.meta_path.insert(0, self)  # it may be installed later
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self.run()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # of this one alone
        return spec
