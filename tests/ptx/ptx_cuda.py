"""The CUDA kernels as nvcc compiles them, run by the PTX machine on CPU tensors.

The host's part of a launch, from the tensors to the grid and the bytes of the parameter, is that of
the emulation (`cuda_emulation.py`), whose kernels lie in the same module: where one lies tells its
mangled name, and nvcc gives a kernel the same. The PTX is made of the source that the kernel is
from when it is first launched, and kept in `build/ptx/cuda`, under the hash of what goes into it.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import cuda_emulation
import native_modules as native
import ptx_machine
import pytest

from xlnet_fast.builder import lock, nvcc
from xlnet_fast.errors import BuildError
from xlnet_fast.kernels.chips import SHARED_LIMITS
from xlnet_fast.kernels.cuda import entries

ARCH = "80"
TIMEOUT_S = 1200.0
CACHE = native.ROOT / "build" / "ptx" / "cuda"


@contextmanager
def running(
    *, arch: str = ARCH, shared_limit: int | None = None, seed: int = 0
) -> Iterator[Counter[str]]:
    """Within the block, launches of backend ``cuda`` on CPU tensors run what nvcc compiles.

    The tensors must be those of `ptx_machine.memory`.

    Args:
        arch: "80" or "90a": what is compiled is for sm_80 or sm_90a.
        shared_limit: bytes of shared memory that a block may have, by which kernels choose their
            tiles; None: as many as the chip gives.
        seed: of the order of warps.

    Yields:
        By the mangled name of a kernel, how often it was launched.
    """
    module = emulation_or_skip()
    launched: Counter[str] = Counter()

    def launch(place: int, blocks: int, threads: int, shared_bytes: int, parameter: bytes) -> None:
        name = _names(Path(str(module.__file__)))[place]
        kernel = load(name, arch)
        launched[name] += 1
        ptx_machine.launch(
            kernel, (blocks,), threads, parameter, shared_bytes=shared_bytes, seed=seed
        )

    if shared_limit is None:
        shared_limit = SHARED_LIMITS[int(arch.rstrip("a"))]
    module.set_device(shared_limit=shared_limit)
    module.set_launcher(launch)
    try:
        with entries.emulating(module):
            yield launched
    finally:
        module.set_launcher(None)
        module.set_device()


@functools.cache
def emulation_or_skip() -> ModuleType:
    """The emulation's module, whose host code launches; a skipped test where something is missing.

    Raises:
        BuildError: a compiler failed.
    """
    try:
        _nvcc()
    except (nvcc.LeftOut, ValueError) as problem:
        pytest.skip(f"the CUDA kernels cannot be compiled to PTX: {problem}")
    if shutil.which("nm") is None:
        pytest.skip("the names of the CUDA kernels cannot be read: there is no nm")
    return cuda_emulation.build_or_skip()


@functools.cache
def load(name: str, arch: str) -> ptx_machine.Loaded:
    """A kernel by its mangled name, ready to run."""
    text = ptx_of(_source_of(name), arch).read_text(encoding="utf-8")
    return ptx_machine.load(_without_others(text, name))[name]


def _without_others(text: str, name: str) -> str:
    """A text with one kernel alone, each line where it was: the rest takes time."""

    def kept(entry: re.Match[str]) -> str:
        return entry[0] if entry[1] == name else "\n" * entry[0].count("\n")

    return re.sub(r"(?ms)^\.visible \.entry (\w+)\(.*?^\}$", kept, text)


def ptx_of(source: Path, arch: str = ARCH) -> Path:
    """The file of a source's PTX for a chip, made if it is not there.

    Raises:
        BuildError: nvcc failed, and what it said.
    """
    found = _nvcc()
    flags = [*nvcc.FLAGS, f"-arch=sm_{arch}"]
    digest = native.digest_of(source, [found.version, *flags], cuda_emulation.CSRC)
    target = CACHE / f"{source.stem}-{digest}.ptx"
    if target.exists():
        return target
    CACHE.mkdir(parents=True, exist_ok=True)
    wait_until_s = time.monotonic() + TIMEOUT_S
    with lock.held(target.with_suffix(".lock"), wait_until_s, on_wait=lambda: None):
        if not target.exists():
            _compile(found, flags, source, target)
    return target


def _compile(found: nvcc.Nvcc, flags: list[str], source: Path, target: Path) -> None:
    partial = target.with_name(f"{os.getpid()}-{target.name}")
    command = [
        *found.command, *flags, f"-I{cuda_emulation.CSRC}", "-ptx", str(source), "-o", str(partial),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).splitlines()[:40])
        raise BuildError(f"{' '.join(command)}\n{said}")
    partial.replace(target)


@functools.cache
def _nvcc() -> nvcc.Nvcc:
    return nvcc.find()


def _source_of(name: str) -> Path:
    """The source that a kernel is compiled from: that whose object has it."""
    sources = _sources()
    if name not in sources:
        raise LookupError(f"no source of the emulation has a kernel {name}")
    return sources[name]


@functools.cache
def _sources() -> dict[str, Path]:
    """The source of each function of the emulation."""
    return {
        function: source
        for source, built in cuda_emulation.objects().items()
        for _, function in _functions(built)
    }


@functools.cache
def _names(module: Path) -> dict[int, str]:
    """The functions of a module by where they lie in its file."""
    return dict(_functions(module))


@functools.cache
def _functions(file: Path) -> list[tuple[int, str]]:
    """The functions of an object or a module: where they lie in it, or in their section of it."""
    done = subprocess.run(
        ["nm", "--defined-only", str(file)], capture_output=True, text=True, check=True
    )
    lines = (line.split(maxsplit=2) for line in done.stdout.splitlines())
    return [(int(place, 16), name) for place, kind, name in lines if kind in "tTwW"]
