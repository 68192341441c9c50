"""Makes the top-level folder `benchmarks` importable however pytest is started; shared fixtures."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def one_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache for all processes of this run of tests: each tokenizer is learnt once."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # which has a folder of its own in that of the run
        base = base.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(base / "benchmarks-cache"))
        yield


@pytest.fixture(scope="session")
def high_water_mark() -> None:
    """Skip where the system offers none that a process may reset, and only there."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as problem:
        pytest.skip(f"this system has no resettable high-water mark: {problem}")
