"""The compiler's command lines, and running several of them at once with a time limit."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

from xlnet_fast.builder import recipe
from xlnet_fast.errors import BuildError

LINES_SHOWN = 15
_POLL_S = 0.02
_HOW_TO_GET_A_COMPILER = (
    "install g++ or clang++ (Debian, Ubuntu: `apt install g++`; Fedora: `dnf install gcc-c++`; "
    "macOS: `xcode-select --install`), or name one in CXX"
)


@dataclass(frozen=True)
class Step:
    """One run of the compiler."""

    what: str  # for people: "csrc/cpu/philox.cpp"
    command: tuple[str, ...]


def find_compiler() -> list[str]:
    """The C++ compiler's command: `CXX`, or else the first found of the usual names.

    Raises:
        BuildError: there is none, or `CXX` names one that is not there.
    """
    asked = shlex.split(os.environ.get("CXX", ""))
    if asked:
        if shutil.which(asked[0]) is None:
            raise BuildError(f"CXX names the compiler {asked[0]!r}, which is not on the path")
        return asked
    if sys.platform == "win32":
        if shutil.which("cl") is None:
            raise BuildError(
                "no C++ compiler is on the path (looked for cl): run this in a developer command "
                "prompt of Visual Studio's build tools"
            )
        return ["cl"]
    # The one that built Python first, where this machine has it.
    built_with = shlex.split(sysconfig.get_config_var("CXX") or "")[:1]
    names = [*built_with, "c++", "g++", "clang++"]
    for name in names:
        if shutil.which(name) is not None:
            return [name]
    looked_for = ", ".join(dict.fromkeys(names))
    raise BuildError(
        f"no C++ compiler is on the path (looked for {looked_for}): {_HOW_TO_GET_A_COMPILER}"
    )


def include_folders() -> list[str]:
    """Where Python's and pybind11's headers are.

    Raises:
        BuildError: either is missing.
    """
    python = sysconfig.get_path("include")
    if not (Path(python) / "Python.h").is_file():
        raise BuildError(
            f"Python's headers are missing: there is no {python}/Python.h; install your "
            f"distribution's package of them (Debian, Ubuntu: python3-dev; Fedora: python3-devel)"
        )
    pybind11 = recipe.pybind11_include()
    if pybind11 is None:
        raise BuildError(
            "pybind11's headers are missing, and torch, which ships them, is not installed: "
            "pip install pybind11"
        )
    return [python, pybind11]


def steps(compiler: list[str], objects: Path, target: Path) -> tuple[list[Step], Step]:
    """(one step per source, which may run side by side; the step that links their objects).

    Args:
        compiler: the command of `find_compiler`.
        objects: the folder that the objects go to.
        target: the extension.
    """
    msvc = Path(compiler[0]).stem.lower() in ("cl", "clang-cl")
    flags = recipe.compile_flags(msvc)
    shared = ["-DNDEBUG", *(f"-I{folder}" for folder in include_folders())]
    shared += [f"-D{name}={value}" for name, value in recipe.macros(flags)]
    if not msvc:
        flags = [*shlex.split(os.environ.get("CXXFLAGS", "")), *flags, "-fPIC"]
    compiling, files = [], []
    for source in recipe.sources():
        relative = source.relative_to(recipe.csrc())
        file = str(objects / "_".join(relative.with_suffix(".obj" if msvc else ".o").parts))
        output = ["/nologo", f"/Fo{file}"] if msvc else ["-o", file]
        command = (*compiler, *flags, *shared, *output, "-c", str(source))
        compiling.append(Step(f"csrc/{relative.as_posix()}", command))
        files.append(file)
    if msvc:
        libraries = f"/LIBPATH:{Path(sys.base_prefix) / 'libs'}"
        output = ["/nologo", "/LD", f"/Fe{target}", "/link", libraries, "/EXPORT:PyInit__C"]
    else:
        shape = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        environment = shlex.split(os.environ.get("LDFLAGS", ""))
        output = [*(shape or ["-shared"]), *recipe.link_flags(), *environment, "-o", str(target)]
    # Flags such as -fsanitize=address must reach the linker too; the others do no harm there.
    return compiling, Step("the extension", (*compiler, *flags, *files, *output))


class Runner:
    """Runs steps, a few at a time, until they are done, one fails or the time is up.

    Args:
        log: the file for the commands and all they say.
        scratch: a folder for what a running compiler says.
        timeout_s: what the user allowed, for the message.
        deadline_s: by `time.monotonic`, when to stop.
    """

    def __init__(self, log: Path, scratch: Path, timeout_s: float, deadline_s: float):
        self.log, self.scratch = log, scratch
        self.timeout_s, self.deadline_s = timeout_s, deadline_s
        self.log.write_bytes(b"")

    def run(self, steps: list[Step], jobs: int) -> None:
        """Run the steps, at most `jobs` at a time.

        Raises:
            BuildError: a step failed or the time is up; no process of any step is left.
        """
        waiting = list(steps)
        running: dict[Step, subprocess.Popen[bytes]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    step = waiting.pop(0)
                    running[step] = self._start(step)
                for step in [step for step in running if running[step].poll() is not None]:
                    self._finish(step, running.pop(step).returncode)
                if running and time.monotonic() >= self.deadline_s:
                    names = ", ".join(step.what for step in running)
                    raise BuildError(
                        f"the build was stopped after {self.timeout_s:g} s, while the compiler "
                        f"worked on {names}; allow more seconds with --timeout"
                    )
                time.sleep(_POLL_S)
        finally:
            for step, process in running.items():
                kill_group(process)
                self._write_log(step)

    def _said(self, step: Step) -> Path:
        return self.scratch / f"{step.what.replace('/', '_')}.log"

    def _write_log(self, step: Step) -> bytes:
        said = self._said(step).read_bytes()
        with open(self.log, "ab") as log:
            log.write(f"$ {shlex.join(step.command)}\n".encode() + said)
        return said

    def _start(self, step: Step) -> subprocess.Popen[bytes]:
        with open(self._said(step), "wb") as output:
            try:
                # A session of its own, so that the compiler's children can be killed with it.
                return subprocess.Popen(
                    step.command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise BuildError(f"{step.command[0]} cannot be started ({error})") from error

    def _finish(self, step: Step, code: int) -> None:
        """Log what a step said; raise where it failed."""
        said = self._write_log(step)
        if code == 0:
            return
        lines = said.decode(errors="replace").rstrip().splitlines()
        how = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
        shown = "".join(f"\n    {line}" for line in lines[-LINES_SHOWN:])
        ended = f"it ended with{shown}" if lines else "it said nothing"
        raise BuildError(
            f"the compiler failed on {step.what} ({how}); {ended}\nall it said is in {self.log}"
        )


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads a group of its own, and everything it started."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(process.pid)], capture_output=True)
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
