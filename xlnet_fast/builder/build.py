"""Build the C++ extension for the running interpreter; `xlnet-fast build` is this.

In a writable checkout it goes into the package's folder, as `make ext` puts it. Elsewhere it goes
into the user's cache (`recipe.cached_extension`), since an installer that owns the package's folder
would know nothing of the file.

The CUDA kernels are in it where `nvcc.find_wanted` says so. The cache has one place for one set of
sources, with kernels or without: a process that only loads the extension asks no nvcc, and finds
the one that is there. Whether that has the kernels, it says itself (`build_info`), and a build
without --force compares that with what it would make.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from xlnet_fast import _extension
from xlnet_fast._extension import BuildInfo
from xlnet_fast.builder import compiler, lock, nvcc, recipe
from xlnet_fast.builder.nvcc import Nvcc
from xlnet_fast.builder.progress import Progress
from xlnet_fast.errors import ArgumentError, BuildError

TIMEOUT_S = 1800.0
_PROBE_TIMEOUT_S = 60.0
# Asks a fresh process, because what this one has loaded it can neither unload nor trust.
_PROBE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from xlnet_fast import _extension
if len(sys.argv) > 2:
    module = _extension.load_file(sys.argv[2])
    found = {"path": sys.argv[2], "reason": None, "build_info": module.build_info()}
else:
    found = {
        "path": _extension.path(),
        "reason": _extension.why_missing(),
        "build_info": _extension.build_info(),
    }
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Built:
    """A working extension: where it lies, what it says of itself, whether this call made it."""

    path: Path
    build_info: BuildInfo
    compiled: bool  # False: it was there already
    time_s: float


@dataclass(frozen=True)
class Place:
    """Where an extension goes, and the folder for lock, objects and log."""

    target: Path
    work: Path


def build_extension(
    force: bool = False,
    timeout_s: float = TIMEOUT_S,
    say: Callable[[str], None] = lambda line: None,
) -> Built:
    """Compile the C++ extension, unless one of these very sources is there already.

    Where PyTorch sees a GPU, or `XLNET_FAST_CUDA` asks for it, the extension has the CUDA kernels
    too; `XLNET_FAST_NO_CUDA` leaves them out. Where nvcc is missing or fails, `say` gets the
    reason; `XLNET_FAST_REQUIRE_EXT` makes a failing one an error.

    Of several processes at once, one compiles and the others wait and take what it made. A process
    that looked for the extension before goes on without it; this one looks anew.

    Args:
        force: compile in any case.
        timeout_s: seconds for everything, the wait for another process included; compilers that
            still run then are killed.
        say: called with each line of progress.

    Raises:
        ArgumentError: `timeout_s` is not positive, `XLNET_FAST_CUDA_ARCHS` is malformed, or
            `XLNET_FAST_CUDA` and `XLNET_FAST_NO_CUDA` are both set.
        BuildError: no compiler, no headers, no sources, no folder to write to, a compiler that
            fails, the time-out, or an extension that does not load. Nothing half-built stays.
    """
    if not timeout_s > 0:
        raise ArgumentError(f"the time-out must be more than 0 seconds, got {timeout_s:g}")
    began_s = time.monotonic()
    if not recipe.sources():
        raise BuildError(
            f"the C++ sources are not part of this installation (there is no "
            f"{recipe.csrc() / 'bindings.cpp'}): reinstall the package"
        )
    place, cuda = find_place(), _find_cuda()
    if not force and (found := _usable(place, cuda)) is not None:
        return _built(found, False, began_s)
    _refuse_what_would_not_be_found(place)
    _make_folder(place.work)
    deadline_s = began_s + timeout_s
    with Progress(say) as progress:
        tell = partial(progress.say, "another process builds the extension; waiting for it")
        with lock.held(place.work / "build.lock", deadline_s, tell) as waited:
            # What the other process made is new enough, also for who wants a new one.
            found = _usable(place, cuda) if waited or not force else None
            if found is None:
                _compile(place, cuda, timeout_s, deadline_s, progress)
    compiled, found = found is None, found or _probe()
    return _built(found, compiled, began_s)


def find_place() -> Place:
    """Where the extension of this installation goes.

    Raises:
        BuildError: the package's folder is not for it, and there is no home for a cache.
    """
    if recipe.is_checkout() and os.access(recipe.PACKAGE, os.W_OK):
        root = recipe.PACKAGE.parent
        target = recipe.PACKAGE / recipe.extension_name()
        return Place(target, root / "build" / f"xlnet-fast-{sys.implementation.cache_tag}")
    target_or_none = recipe.cached_extension()
    if target_or_none is None:
        raise BuildError(
            "there is no folder to build into: this user has no home; set XLNET_FAST_CACHE to a "
            "folder that can be written to"
        )
    return Place(target_or_none, target_or_none.parent)


# --- what is there already -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    path: Path | None
    reason: str | None
    build_info: BuildInfo | None


def _probe(file: Path | None = None) -> _Found:
    """What a fresh process finds by itself, or how it finds `file`."""
    command = [sys.executable, "-c", _PROBE, str(recipe.PACKAGE.parent)]
    command += [] if file is None else [str(file)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return _Found(None, f"loading it took more than {_PROBE_TIMEOUT_S:g} s", None)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"Python ended with code {done.returncode}"]
        return _Found(None, said[-1], None)
    facts = json.loads(done.stdout.strip().splitlines()[-1])
    path = None if facts["path"] is None else Path(facts["path"])
    return _Found(path, facts["reason"], cast("BuildInfo | None", facts["build_info"]))


def _is_stale(path: Path) -> bool:
    """Whether an extension in the package's folder is older than its sources.

    One in the cache has their hash in its folder's name, one from a wheel came with them.
    """
    if not recipe.is_checkout() or path.parent != recipe.PACKAGE:
        return False
    made = path.stat().st_mtime
    return any(file.stat().st_mtime > made for file in recipe.inputs())


def _usable(place: Place, cuda: _Cuda) -> _Found | None:
    """What need not be built again, if anything."""
    if not (place.target.exists() or (recipe.PACKAGE / recipe.extension_name()).exists()):
        return None
    found = _probe()
    if found.path is None or found.build_info is None or _is_stale(found.path):
        return None
    # One that came with the package could not be replaced: that is told when it is asked for.
    replaceable = found.path == place.target
    fits = cuda.archs is None or set(found.build_info["cuda_archs"]) == set(cuda.archs)
    flags = [" ".join(recipe.compile_flags(msvc)).split() for msvc in (False, True)]
    fits = fits and found.build_info["flags"] in flags
    return found if fits or not replaceable else None


def _refuse_what_would_not_be_found(place: Place) -> None:
    """Before minutes of compiling: would an extension in the package's folder come first?"""
    first = recipe.PACKAGE / recipe.extension_name()
    if place.target == first or not first.exists() or _probe().path != first:
        return
    why = "cannot be written to" if recipe.is_checkout() else "belongs to the installer"
    raise BuildError(
        f"{first} would be loaded before any that is built now, and its folder {why}: reinstall "
        f"the package, or make the folder of a checkout writable"
    )


def _built(found: _Found, compiled: bool, began_s: float) -> Built:
    if found.path is None or found.build_info is None:
        raise BuildError(f"the extension is in its place, but a new process says: {found.reason}")
    _extension.forget()
    return Built(found.path, found.build_info, compiled, time.monotonic() - began_s)


# --- with CUDA kernels or without ----------------------------------------------------------------


@dataclass(frozen=True)
class _Cuda:
    """What compiles the CUDA kernels, and the architectures that an extension shall have.

    `archs` None: any will do, since this machine can make none.
    """

    compiler: Nvcc | None = None
    archs: tuple[str, ...] | None = None
    left_out: nvcc.LeftOut | None = None


def _find_cuda() -> _Cuda:
    if not recipe.cuda_sources():
        return _Cuda()
    try:
        found = nvcc.find_wanted()
    except ValueError as error:
        raise ArgumentError(str(error)) from error
    except nvcc.LeftOut as error:
        return _Cuda(archs=() if isinstance(error, nvcc.Unwanted) else None, left_out=error)
    return _Cuda(found, found.archs)


def _leave_cuda_out(reason: str, fault: bool, say: Callable[[str], None]) -> None:
    """Say that there will be no CUDA kernels; an nvcc at fault is an error where all is required.

    Raises:
        BuildError: `XLNET_FAST_REQUIRE_EXT` is set.
    """
    if fault and recipe.is_set("XLNET_FAST_REQUIRE_EXT"):
        raise BuildError(
            f"XLNET_FAST_REQUIRE_EXT is set, but the CUDA kernels cannot be built: {reason}"
        )
    say(f"the CUDA kernels are left out ({reason})")


# --- making one ----------------------------------------------------------------------------------


def _make_folder(folder: Path) -> None:
    try:
        # Code that will be loaded: nobody else shall put any there.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _not_writable(folder, "no permission")


def _not_writable(folder: Path, error: object) -> BuildError:
    return BuildError(
        f"the folder {folder} cannot be made or written to ({error}); set XLNET_FAST_CACHE to a "
        f"folder that can"
    )


def _compile(
    place: Place,
    cuda: _Cuda,
    timeout_s: float,
    deadline_s: float,
    progress: Progress,
) -> None:
    """Compile and link in the work folder, try the result, and move it to its place."""
    began_at = time.time()
    objects = place.work / "objects"
    fresh = objects / recipe.extension_name()
    shutil.rmtree(objects, ignore_errors=True)  # what a killed build left
    try:
        objects.mkdir()
        if cuda.left_out is not None:
            _leave_cuda_out(
                str(cuda.left_out), isinstance(cuda.left_out, nvcc.Broken), progress.say
            )
        log = place.work / "build.log"
        runner = compiler.Runner(log, objects, timeout_s, deadline_s, progress)
        _run_compilers(runner, fresh, cuda.compiler, progress)
        tried = _probe(fresh)
        if tried.path is None:
            raise BuildError(f"the extension was compiled but does not load: {tried.reason}")
        # Dated by its sources: what changed meanwhile is newer.
        os.utime(fresh, (began_at, began_at))
        _publish(fresh, place.target)
    except BrokenPipeError:  # nobody reads the lines of progress any more
        raise
    except OSError as error:
        raise _not_writable(place.work, error) from error
    finally:
        shutil.rmtree(objects, ignore_errors=True)


def _run_compilers(
    runner: compiler.Runner, fresh: Path, cuda: Nvcc | None, progress: Progress
) -> None:
    """Compile all sources side by side and link them into `fresh`; without CUDA if nvcc fails."""
    command, objects, jobs = compiler.find_compiler(), fresh.parent, recipe.jobs()
    plain = compiler.cpp_steps(command, objects, cuda)
    names, kernels = command[0], []
    if cuda is not None:
        optional = not recipe.is_set("XLNET_FAST_REQUIRE_EXT")
        kernels = compiler.cuda_steps(cuda, objects, optional)
        names += f" and {cuda.command[0]} for {', '.join(cuda.archs)}"
    count = len(kernels) + len(plain)
    progress.say(f"compiling {count} files with {names}, {jobs} at a time, then linking them")
    progress.expect(count + 1)
    # The kernels first: they take longest.
    failure = runner.run([*kernels, *plain], jobs)
    if failure is not None:
        cuda = None
        _leave_cuda_out(str(failure), True, progress.say)
        bindings = f"csrc/{recipe.BINDINGS}"
        again = compiler.cpp_steps(command, objects)
        runner.run([step for step in again if step.what == bindings], 1)
    runner.run([compiler.link_step(command, objects, fresh, cuda)], 1)


def _publish(fresh: Path, target: Path) -> None:
    """Put a file in its place in one step: a process sees the old one, or the whole new one."""
    part = target.with_name(f"_C.partial{target.suffix}")  # in the same file system as target
    try:
        shutil.copy2(fresh, part)
        os.replace(part, target)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()
