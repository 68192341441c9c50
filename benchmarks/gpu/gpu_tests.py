"""Which tests need a GPU, in which order, and the command that runs them."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..harness.stages import EVIDENCE_VARIABLE, ROOT

# What the GPU is for: the kernels themselves.
TELLING = (
    "test_triton_rel_attention.py", "test_cuda_rel_attention.py", "test_cuda_small_ops.py",
    "test_triton_small_ops.py",
)  # fmt: skip
MOST_WORKERS = 14
_TEST_S = 120


def gpu_test_files(tests: Path) -> list[str]:
    """Return the test files that use the `gpu` marker.

    Only these are collected: others may import test tools that a GPU machine does not have.
    """
    files = sorted(tests.rglob("test_*.py"))
    return [str(f.relative_to(tests.parent)) for f in files if "mark.gpu" in f.read_text("utf-8")]


def in_order(tests: Path = ROOT / "tests") -> tuple[list[str], list[str]]:
    """The files that say most about the kernels, in order, and the others."""
    files = gpu_test_files(tests)
    telling = [f for name in TELLING for f in files if Path(f).name == name]
    return telling, [f for f in files if f not in telling]


def why_not() -> str | None:
    """Why no test can run here, None where they can."""
    return None if importlib.util.find_spec("pytest") else "pytest cannot be imported"


def workers() -> int:
    """Processes of tests at a time: two cores stay for what the GPU's driver does."""
    return max(1, min(MOST_WORKERS, (os.cpu_count() or 1) - 2))


def command(files: Sequence[str]) -> list[str]:
    """The command that runs the GPU tests of some files, on several processes where xdist is here.

    Of tests that share compilations one comes first (`tests/order_of_tests.py`), and each process
    gets one test at a time: so what is compiled once is not compiled by all of them at once. Of
    xdist's ways to deal tests only this one survives the crash of a process.
    """
    # The project's own options name plugins that this machine may lack.
    made = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--tb=short", "-o", "addopts="]
    made += ["-p", "no:cacheprovider", "-p", f"{__package__}.failures"]
    if importlib.util.find_spec("xdist") is not None:
        made += ["-n", str(workers()), "--dist", "load", "--maxschedchunk", "1"]
    if importlib.util.find_spec("pytest_timeout") is not None:
        made += ["-o", f"timeout={_TEST_S}"]
    return [*made, *files]


def settings(evidence: Path) -> dict[str, str]:
    """Variables of that command: where failed tests are told."""
    return {EVIDENCE_VARIABLE: str(evidence)}
