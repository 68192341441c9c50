"""Makes the top-level folder `benchmarks` importable however pytest is started; shared fixtures."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def high_water_mark() -> None:
    """Skip where the system offers none that a process may reset, and only there."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as problem:
        pytest.skip(f"this system has no resettable high-water mark: {problem}")
