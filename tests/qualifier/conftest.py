"""A cache and locks of each test's own."""

from __future__ import annotations

import sys

import pytest

from xlnet_fast.ops.qualification import proof
from xlnet_fast.qualifier import run as runs


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """And no core dumps of children that abort, which take time, nor their tracebacks."""
    monkeypatch.setenv("XLNET_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PYTHONFAULTHANDLER", raising=False)
    monkeypatch.setattr(proof, "_given_tiles", None)
    (tmp_path / "locks").mkdir()
    monkeypatch.setattr(runs.tempfile, "gettempdir", lambda: str(tmp_path / "locks"))
    if sys.platform == "win32":
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)
