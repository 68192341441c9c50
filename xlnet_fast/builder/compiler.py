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
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xlnet_fast.builder import nvcc, recipe
from xlnet_fast.builder.nvcc import Nvcc
from xlnet_fast.builder.progress import Progress
from xlnet_fast.errors import BuildError

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
    optional: bool = False  # a failure of one ends the optional ones, not the build


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


def is_msvc(compiler: list[str]) -> bool:
    """Whether a compiler takes the flags of Microsoft's."""
    return Path(compiler[0]).stem.lower() in ("cl", "clang-cl")


def cpp_steps(compiler: list[str], objects: Path, cuda: Nvcc | None = None) -> list[Step]:
    """One step per C++ source, which may run side by side.

    Args:
        compiler: the command of `find_compiler`.
        objects: the folder that the objects go to.
        cuda: what compiles the CUDA kernels, None where there will be none.
    """
    msvc = is_msvc(compiler)
    flags = recipe.compile_flags(msvc)
    shared = ["-DNDEBUG", *(f"-I{folder}" for folder in include_folders())]
    archs, version = ((), "") if cuda is None else (cuda.archs, cuda.version)
    shared += [f"-D{name}={value}" for name, value in recipe.macros(flags, archs, version)]
    if not msvc:
        flags = [*shlex.split(os.environ.get("CXXFLAGS", "")), *flags, "-fPIC"]
    compiling = []
    for source in recipe.sources():
        file = str(_object(source, objects, ".obj" if msvc else ".o"))
        output = ["/nologo", f"/Fo{file}"] if msvc else ["-o", file]
        command = (*compiler, *flags, *shared, *output, "-c", str(source))
        compiling.append(Step(_name(source), command))
    return compiling


def cuda_steps(cuda: Nvcc, objects: Path, optional: bool) -> list[Step]:
    """One step per CUDA source, which may run beside those of `cpp_steps`."""
    return [
        Step(_name(source), nvcc.compile_command(cuda, source, _object(source, objects)), optional)
        for source in recipe.cuda_sources()
    ]


def link_step(compiler: list[str], objects: Path, target: Path, cuda: Nvcc | None = None) -> Step:
    """The step that links all objects into the extension `target`."""
    msvc = is_msvc(compiler)
    flags = recipe.compile_flags(msvc)
    sources = [*recipe.sources(), *(recipe.cuda_sources() if cuda else [])]
    files = [str(_object(source, objects, ".obj" if msvc else ".o")) for source in sources]
    if msvc:
        folder = f"/LIBPATH:{Path(sys.base_prefix) / 'libs'}"
        output = ["/nologo", "/LD", f"/Fe{target}", "/link", folder, "/EXPORT:PyInit__C"]
    else:
        shape = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        flags = [*shlex.split(os.environ.get("CXXFLAGS", "")), *flags, "-fPIC"]
        environment = shlex.split(os.environ.get("LDFLAGS", ""))
        libraries = [*recipe.link_flags(), *(nvcc.link_flags(cuda) if cuda else [])]
        output = [*(shape or ["-shared"]), *libraries, *environment, "-o", str(target)]
    # Flags such as -fsanitize=address must reach the linker too; the others do no harm there.
    return Step("the extension", (*compiler, *flags, *files, *output))


def _name(source: Path) -> str:
    return f"csrc/{source.relative_to(recipe.csrc()).as_posix()}"


def _object(source: Path, objects: Path, suffix: str = ".o") -> Path:
    return objects / "_".join(source.relative_to(recipe.csrc()).with_suffix(suffix).parts)


class Runner:
    """Runs steps, a few at a time, until they are done, one fails or the time is up.

    Args:
        log: the file for the commands and all they say.
        scratch: a folder for what a running compiler says.
        timeout_s: what the user allowed, for the message.
        deadline_s: by `time.monotonic`, when to stop.
        progress: hears of every step.
    """

    def __init__(
        self, log: Path, scratch: Path, timeout_s: float, deadline_s: float, progress: Progress
    ):
        self.log, self.scratch, self.progress = log, scratch, progress
        self.timeout_s, self.deadline_s = timeout_s, deadline_s
        self.log.write_bytes(b"")

    def run(self, steps: list[Step], jobs: int) -> BuildError | None:
        """Run the steps, at most `jobs` at a time.

        Returns:
            What an optional step failed with, whereupon the other optional ones were ended.

        Raises:
            BuildError: a step failed or the time is up; no process of any step is left.
        """
        waiting, failure = list(steps), None
        running: dict[Step, subprocess.Popen[bytes]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    step = waiting.pop(0)
                    with _interrupts_deferred():  # else it could run and be in no list yet
                        running[step] = self._start(step)
                        self.progress.begin(step.what)
                for step in [step for step in running if running[step].poll() is not None]:
                    failed = self._finish(step, running.pop(step).returncode)
                    failure = failure or failed
                if failure is not None:
                    waiting = [step for step in waiting if not step.optional]
                    self._end([step for step in running if step.optional], running)
                if running and time.monotonic() >= self.deadline_s:
                    names = ", ".join(step.what for step in running)
                    raise BuildError(
                        f"the build was stopped after {self.timeout_s:g} s, while the compiler "
                        f"worked on {names}; allow more seconds with --timeout"
                    )
                time.sleep(_POLL_S)
            return failure
        finally:
            self._end(list(running), running)

    def _end(self, steps: list[Step], running: dict[Step, subprocess.Popen[bytes]]) -> None:
        """Kill running steps and log what they said."""
        for step in steps:
            kill_group(running.pop(step))
            self.progress.end(step.what, done=False)
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

    def _finish(self, step: Step, code: int) -> BuildError | None:
        """Log what a step said; where it failed, raise, or return the error of an optional one."""
        said = self._write_log(step)
        self.progress.end(step.what, done=code == 0)
        if code == 0:
            return None
        how = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
        shown = nvcc.last_lines(said.decode(errors="replace"))
        ended = f"it ended with{shown}" if shown else "it said nothing"
        error = BuildError(
            f"the compiler failed on {step.what} ({how}); {ended}\nall it said is in {self.log}"
        )
        if step.optional:
            return error
        raise error


@contextlib.contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """SIGINT and SIGTERM take effect behind the block, if Python handles them here at all."""
    arrived: list[int] = []
    handlers = {}
    try:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if callable(handler):
                    handlers[number] = handler
                    signal.signal(number, lambda sent, frame: arrived.append(sent))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads a group of its own, and everything it started."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(process.pid)], capture_output=True)
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
