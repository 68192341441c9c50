"""Builds the emulation of the CUDA kernels: the sources of `csrc/cuda`, compiled for the host.

Objects and modules lie in `build/cuda-emulation`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import native_modules as native
import pytest
import torch

from xlnet_fast.builder import compiler
from xlnet_fast.errors import BuildError
from xlnet_fast.kernels.cuda import entries, why_unavailable
from xlnet_fast.ops import _dispatch

CSRC = native.ROOT / "csrc"
CACHE = native.ROOT / "build" / "cuda-emulation"
FLAGS = ("-std=c++17", "-O1", "-g0", "-fPIC", "-fvisibility=hidden", "-DXLNET_FAST_EMULATION=1")


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
    wanted = {_object(path, command, csrc): path for path in (*taken, *extra)}
    link = [*native.compiler_command(), "-shared", "-pthread"]

    def compile_one(target: Path, source: Path) -> None:
        _compile(command, target, source, csrc)

    return native.built(name, CACHE, wanted, compile_one, link)


def objects(csrc: Path = CSRC) -> dict[Path, Path]:
    """Each source of the emulation with the object that `build` makes of it."""
    command = _command(csrc)
    return {path: _object(path, command, csrc) for path in sources(csrc)}


def _command(csrc: Path, defines: Sequence[str] = ()) -> tuple[str, ...]:
    return (*native.compiler_command(), *FLAGS, *(f"-D{define}" for define in defines), f"-I{csrc}")


def _compile(command: tuple[str, ...], target: Path, source: Path, csrc: Path) -> None:
    folders = [f"-I{folder}" for folder in compiler.include_folders()]
    native.make(target, [*command, *folders, "-x", "c++", "-c", str(source)])
    if _object(source, command, csrc) != target:
        target.unlink()
        raise BuildError(f"{source} or a header of it changed while it was compiled: run again")


def _object(source: Path, command: tuple[str, ...], csrc: Path) -> Path:
    """Where the object of a source lies: its name holds the hash of all that decides about it."""
    # The same text in another folder is the same object.
    said = [part for part in command if not part.startswith("-I")]
    digest = native.digest_of(source, [native.compiler_version(), *said], csrc)
    return CACHE / f"{source.stem}-{digest}.o"


def build_or_skip(**options: object) -> ModuleType:
    """`build`, or a skipped test where there is no compiler; an error in the sources fails it."""
    try:
        native.compiler_command()
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
