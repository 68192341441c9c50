"""Runs the CPU kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer (Linux, gcc).

    python tests/sanitize_cpu.py [arguments of pytest]

Builds the extension with both sanitizers into build/sanitize, where nothing else finds it, and runs
the tests below with it, in two processes. The exit code is pytest's: a worker that a sanitizer ends
fails its test, and the sanitizer's report is in the output. 2 where there is no gcc that has them.

The tests load this file as a pytest plugin, which puts the sanitized extension in the place of the
checkout's before anything imports that.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "sanitize"
FLAGS = (
    "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer",
    "-O1", "-g",
)  # fmt: skip
TESTS = tuple(
    f"tests/kernels/test_cpu_{name}.py"
    for name in ("rel_attention", "entries", "small_ops", "linear", "dropout")
)
SELECTED = "not square and not environment and not torch_is_told"
"""One test measures the memory of a process, and a sanitizer keeps what was freed. The others start
processes that have the checkout's extension, which is not sanitized."""

VARIABLE = "XLNET_FAST_SANITIZED"
MISSING = 2


def runtimes() -> list[str] | None:
    """The sanitizers' shared libraries, None where the compiler has none."""
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    found = []
    for name in ("libasan.so", "libubsan.so"):
        try:
            command = [*compiler, f"-print-file-name={name}"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        path = Path(done.stdout.strip())
        if not path.is_absolute():  # not found: the name as it was given
            return None
        found.append(str(path.resolve()))
    return found


def build() -> Path:
    """The extension with both sanitizers."""
    flags = " ".join(FLAGS)
    settings = {
        "XLNET_FAST_REQUIRE_EXT": "1", "XLNET_FAST_NO_CUDA": "1", "XLNET_FAST_CXXFLAGS": flags,
        "LDFLAGS": flags,
    }  # fmt: skip
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(FOLDER),
         "--build-temp", str(FOLDER / "objects")],
        cwd=ROOT, env=os.environ | settings, check=True,
    )  # fmt: skip
    return FOLDER / "xlnet_fast" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


def pytest_configure(config: pytest.Config) -> None:
    """Load the sanitized extension as the package's own, and see that it is one."""
    from xlnet_fast import _extension

    module = _extension.load_file(os.environ[VARIABLE])
    sys.modules["xlnet_fast._C"] = module  # type: ignore[assignment]
    if _extension.load() is not module or FLAGS[0] not in module.build_info()["flags"]:
        raise pytest.UsageError(f"{_extension.path()} was not built with {FLAGS[0]}")


def main(arguments: list[str]) -> int:
    """Build, then run the tests."""
    libraries = runtimes()
    if not sys.platform.startswith("linux") or libraries is None:
        print("error: this needs Linux and gcc's libasan and libubsan (CXX)", file=sys.stderr)
        return MISSING
    settings = {
        VARIABLE: str(build()),
        "LD_PRELOAD": " ".join(libraries),
        # Python itself leaks at exit, and its own allocator would hide the bounds of what it gives.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
    }
    # Descriptors are not captured: a report is written where Python does not see it.
    command = [
        sys.executable, "-m", "pytest", "-p", "sanitize_cpu", "--capture=sys", "-n", "2", "-q",
        "--benchmark-disable", "-p", "no:cacheprovider", "-k", SELECTED, *TESTS, *arguments,
    ]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, env=os.environ | settings).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
