"""Builds the emulation of the CUDA kernels: the sources of `csrc/cuda`, compiled for the host.

Objects and modules lie in `build/cuda-emulation`, under the hash of what goes into them: source,
headers that it includes, flags and compiler. So a changed file compiles itself and what includes
it, and two test processes share one build.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import re
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from xlnet_fast.builder import compiler, lock
from xlnet_fast.errors import BuildError
from xlnet_fast.kernels.cuda import entries, why_unavailable
from xlnet_fast.ops import _dispatch

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
CACHE = ROOT / "build" / "cuda-emulation"
JOBS = 2
TIMEOUT_S = 1200.0
FLAGS = ("-std=c++17", "-O1", "-g0", "-fPIC", "-fvisibility=hidden", "-DXLNET_FAST_EMULATION=1")
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def sources(csrc: Path = CSRC) -> list[Path]:
    """What the emulation is made of: every kernel, and what stands in for the GPU."""
    cuda = csrc / "cuda"
    patterns = ("*.cu", "instantiations/*.cu", "emulation/*.cpp")
    return [path for pattern in patterns for path in sorted(cuda.glob(pattern))]


def build(
    csrc: Path = CSRC,
    defines: Sequence[str] = (),
    only: Callable[[Path], bool] | None = None,
    extra: Sequence[Path] = (),
    name: str = "_cuda_emulation",
) -> ModuleType:
    """Compile and load an emulation.

    Args:
        csrc: the folder of the sources, or of a changed copy of it.
        defines: macros, as NAME or NAME=VALUE.
        only: which of `sources(csrc)` are taken; default all.
        extra: more sources; they may include by paths from `csrc`.
        name: what PYBIND11_MODULE is called in one of the sources.

    Raises:
        BuildError: the compiler's first words, or that there is none.
    """
    taken = [path for path in sources(csrc) if only is None or only(path)]
    command = _command(csrc, defines)
    CACHE.mkdir(parents=True, exist_ok=True)
    wanted = {_object(path, command, csrc): path for path in (*taken, *extra)}
    digest = _digest(name, *(path.name for path in sorted(wanted)))
    module = CACHE / digest / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    # Everything is written beside its place and moved there, so a process may read without lock.
    if not module.exists():
        deadline_s = time.monotonic() + TIMEOUT_S
        with lock.held(CACHE / "lock", deadline_s, on_wait=lambda: None):
            missing = [(path, wanted[path]) for path in wanted if not path.exists()]
            with ThreadPoolExecutor(JOBS) as pool:
                list(pool.map(lambda pair: _compile(command, *pair, csrc), missing))
            module.parent.mkdir(exist_ok=True)
            _make(module, [*_compiler(), "-shared", "-pthread", *map(str, wanted)])
    return _load(name, module)


def objects(csrc: Path = CSRC) -> dict[Path, Path]:
    """Each source of the emulation with the object that `build` makes of it."""
    command = _command(csrc)
    return {path: _object(path, command, csrc) for path in sources(csrc)}


def digest_of(source: Path, said: Sequence[str], csrc: Path = CSRC) -> str:
    """A hash of a source with every header of ours that it reaches, and of what else decides."""
    texts = (path.read_text(encoding="utf-8") for path in sorted(_reached(source, csrc)))
    return _digest(*said, *texts)


def _command(csrc: Path, defines: Sequence[str] = ()) -> tuple[str, ...]:
    return (*_compiler(), *FLAGS, *(f"-D{define}" for define in defines), f"-I{csrc}")


def _compile(command: tuple[str, ...], target: Path, source: Path, csrc: Path) -> None:
    folders = [f"-I{folder}" for folder in compiler.include_folders()]
    _make(target, [*command, *folders, "-x", "c++", "-c", str(source)])
    if _object(source, command, csrc) != target:
        target.unlink()
        raise BuildError(f"{source} or a header of it changed while it was compiled: run again")


def _make(target: Path, command: list[str]) -> None:
    partial = target.with_name(f"{os.getpid()}-{target.name}")
    done = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True)
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).splitlines()[:40])
        raise BuildError(f"{' '.join(command)}\n{said}")
    partial.replace(target)


def _load(name: str, path: Path) -> ModuleType:
    # pybind11 makes one module of one name, whatever its file: a changed copy needs its own.
    full = f"{path.parent.name}.{name}"
    loader = importlib.machinery.ExtensionFileLoader(full, str(path))
    spec = importlib.util.spec_from_file_location(full, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@functools.cache
def _compiler() -> tuple[str, ...]:
    return tuple(compiler.find_compiler())


@functools.cache
def _compiler_version() -> str:
    done = subprocess.run([*_compiler(), "--version"], capture_output=True, text=True, check=True)
    return done.stdout


def _object(source: Path, command: tuple[str, ...], csrc: Path) -> Path:
    """Where the object of a source lies: its name holds the hash of all that decides about it."""
    # The same text in another folder is the same object.
    said = [part for part in command if not part.startswith("-I")]
    return CACHE / f"{source.stem}-{digest_of(source, [_compiler_version(), *said], csrc)}.o"


def _reached(source: Path, csrc: Path) -> set[Path]:
    """The source and every header of ours that it includes, directly or not."""
    found: set[Path] = set()
    waiting = [source.resolve()]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for name in _INCLUDE.findall(path.read_text(encoding="utf-8")):
            near = [folder / name for folder in (path.parent, csrc) if (folder / name).is_file()]
            waiting += [file.resolve() for file in near[:1]]
    return found


def _digest(*texts: str) -> str:
    total = hashlib.sha256()
    for text in texts:
        total.update(f"{len(text)}\n{text}".encode())
    return total.hexdigest()[:16]


def build_or_skip(**options: object) -> ModuleType:
    """`build`, or a skipped test where there is no compiler; an error in the sources fails it."""
    try:
        _compiler()
        compiler.include_folders()
    except BuildError as problem:
        pytest.skip(f"the emulation of the CUDA kernels cannot be built: {problem}")
    return build(**options)


@pytest.fixture(scope="session")
def emulation_module() -> ModuleType:
    return build_or_skip()


@pytest.fixture
def emulation(emulation_module: ModuleType) -> Iterator[ModuleType]:
    """Within the test, the kernels of backend ``cuda`` run in the emulation, on CPU tensors."""
    emulation_module.take_counters()
    emulation_module.take_shared_bytes()
    with entries.emulating(emulation_module):
        yield emulation_module
    emulation_module.set_downwards(False)
    emulation_module.set_device()


@pytest.fixture
def as_gpu(emulation: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the test, the dispatcher takes a CPU for the GPU of backend ``cuda``."""
    capabilities = tuple(
        replace(capability, devices=("cpu",)) if capability.name == "cuda" else capability
        for capability in _dispatch.CAPABILITIES
    )
    monkeypatch.setattr(_dispatch, "CAPABILITIES", capabilities)


KINDS = [
    pytest.param("cpu", id="emulated"),
    pytest.param("cuda", id="gpu", marks=pytest.mark.gpu),
]


@pytest.fixture(params=KINDS)
def device(request: pytest.FixtureRequest) -> str:
    """Where the kernels run: emulated on CPU tensors, or on a GPU that they were compiled for."""
    if request.param == "cpu":
        request.getfixturevalue("emulation")
    elif (reason := why_unavailable(torch.device("cuda", 0))) is not None:
        pytest.skip(reason)
    return request.param
