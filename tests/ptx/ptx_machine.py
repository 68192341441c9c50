"""Running PTX on the CPU: the machine of `engine/`, built where it runs.

`load` reads and decodes a text, `launch` runs a kernel of it on tensors that were made within
`memory`. What a GPU would do without a word (a race, a stray or misaligned access, a barrier that
not all threads reach) ends a launch with a `Fault`.
"""

from __future__ import annotations

import functools
import platform
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import native_modules as native
import ptx_text
import pytest
import torch

from xlnet_fast.builder import compiler
from xlnet_fast.errors import BuildError

ENGINE = Path(__file__).resolve().parent / "engine"
CACHE = native.ROOT / "build" / "ptx"
# Neither a product and a sum in one rounding where a kernel has two, nor types by which a register
# may not be read again.
FLAGS = (
    *("-std=c++20", "-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic", "-march=native"),
    *("-ffp-contract=off", "-fno-strict-aliasing", "-g0", "-fPIC", "-fvisibility=hidden"),
    "-Wno-psabi",
)


class Fault(RuntimeError):
    """What a kernel did wrong, or a text that cannot be run.

    The message has the kernel, the line and the instruction as it stands there, the block, the
    thread, and what was wrong.
    """


@dataclass(frozen=True)
class Counters:
    """What a launch did.

    Attributes:
        kernel: what was launched.
        runs: of each of its instructions, how often a warp ran it.
        barriers: of a whole block, over all blocks.
        global_read, global_written, shared_read, shared_written: bytes, where memory counts them.
    """

    kernel: ptx_text.Kernel
    runs: Sequence[int]
    barriers: int = 0
    global_read: int = 0
    global_written: int = 0
    shared_read: int = 0
    shared_written: int = 0

    @functools.cached_property
    def instructions(self) -> Counter[str]:
        """By name, modifiers and all, how often a warp ran one."""
        return self._counted("name")

    @functools.cached_property
    def by_line(self) -> Counter[int]:
        """By line of the text, how often a warp ran it."""
        return self._counted("line")

    def _counted(self, by: str) -> Counter[Any]:
        counted: Counter[Any] = Counter()
        for each, times in zip(self.kernel.instructions, self.runs, strict=True):
            if times:
                counted[getattr(each, by)] += times
        return counted

    @property
    def total(self) -> int:
        """Instructions of warps."""
        return sum(self.runs)

    def family(self, name: str) -> int:
        """How many of "mma", with any modifiers, ran."""
        return sum(times for each, times in self.instructions.items() if each.split(".")[0] == name)


@dataclass(frozen=True)
class Loaded:
    """A kernel that can be launched."""

    kernel: ptx_text.Kernel
    program: Any  # of the engine

    @property
    def name(self) -> str:
        return self.kernel.name


def engine() -> ModuleType:
    """The machine; a test that asks where there is no compiler is skipped.

    Raises:
        BuildError: the sources do not compile.
    """
    try:
        compiler.find_compiler()
        compiler.include_folders()
    except BuildError as problem:
        pytest.skip(f"the machine that runs PTX cannot be built: {problem}")
    return _engine()


@functools.cache
def _engine() -> ModuleType:
    torch_folder = Path(torch.__file__).parent
    command = (*native.compiler_command(), *FLAGS)
    folders = [*compiler.include_folders(), str(torch_folder / "include")]

    def compile_one(target: Path, source: Path) -> None:
        includes = [f"-I{folder}" for folder in folders]
        native.make(target, [*command, *includes, "-x", "c++", "-c", str(source)])

    objects = {_object(path, command): path for path in sorted(ENGINE.glob("*.cpp"))}
    libraries = [f"-L{torch_folder / 'lib'}", "-lc10"]
    return native.built(
        "_ptx_machine", CACHE, objects, compile_one, [*command, "-shared"], libraries
    )


def _object(source: Path, command: tuple[str, ...]) -> Path:
    """Where the object of a source lies: its name holds the hash of all that decides about it."""
    said = [native.compiler_version(), torch.__version__, _processor(), *command]
    return CACHE / f"{source.stem}-{native.digest_of(source, said, ENGINE)}.o"


@functools.cache
def _processor() -> str:
    """What the code is made for: the instructions that this processor has."""
    try:
        found = re.search(r"^(flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[0] if found else platform.processor()


def load(text: str) -> dict[str, Loaded]:
    """Read a text and decode its kernels, by name.

    Raises:
        Fault: at an instruction that is not known, with its line.
        ptx_text.TextError: at what is not understood.
    """
    return {
        name: Loaded(kernel, _program(kernel))
        for name, kernel in ptx_text.parse(text).kernels.items()
    }


def _program(kernel: ptx_text.Kernel) -> Any:
    machine = engine()
    try:
        return machine.load(
            kernel.name,
            {each.name: each.offset for each in kernel.parameters},
            kernel.parameter_bytes,
            [(each.name, each.bytes, each.count) for each in kernel.registers],
            [(each.name, each.space, each.align, each.bytes) for each in kernel.symbols],
            kernel.instructions,
            kernel.labels,
            kernel.tables,
        )
    except machine.Fault as problem:
        raise Fault(f"kernel {kernel.name}, {problem}") from None


def launch(
    kernel: Loaded,
    grid: tuple[int, ...],
    threads: int | tuple[int, ...],
    parameters: bytes,
    *,
    shared_bytes: int = 0,
    seed: int = 0,
) -> Counters:
    """Run a kernel's blocks, one after the other.

    Args:
        kernel: from `load`.
        grid: blocks along x, and y and z.
        threads: of a block, alike.
        parameters: as they lie in the .param space: each aligned to its size.
        shared_bytes: of dynamic shared memory.
        seed: decides the order of blocks and of warps.

    Raises:
        Fault: the kernel did what it may not.
        ValueError: it cannot be launched so.
    """
    extent = _three(grid)
    block = _three((threads,) if isinstance(threads, int) else threads)
    count = block[0] * block[1] * block[2]
    own = kernel.kernel
    if own.threads is not None and own.threads != block:
        raise ValueError(f"{own.name} wants blocks of {own.threads} threads, not {block}")
    if count > (own.most_threads or 1024):
        raise ValueError(f"{own.name} cannot have {count} threads in a block")
    if len(parameters) != own.parameter_bytes:
        raise ValueError(
            f"{own.name} has {own.parameter_bytes} bytes of parameters, not {len(parameters)}"
        )
    machine = engine()
    try:
        found = machine.launch(kernel.program, extent, block, parameters, shared_bytes, seed)
    except machine.Fault as problem:
        raise Fault(str(problem)) from None
    return Counters(own, array("I", found.pop("runs")), **found)


def _three(extent: tuple[int, ...]) -> tuple[int, int, int]:
    x, y, z = (*extent, 1, 1)[:3]
    if len(extent) > 3 or min(x, y, z) < 1:
        raise ValueError(f"not an extent along x, y and z: {extent}")
    return x, y, z


@contextmanager
def memory() -> Iterator[None]:
    """Within, tensors that are made on the CPU are the device's memory.

    Each lies apart from the others, is full of NaN, and a kernel may touch nothing else.
    """
    machine = engine()
    machine.install_allocator()
    try:
        yield
    finally:
        machine.remove_allocator()


@contextmanager
def open_stores() -> Iterator[None]:
    """Within, lanes of one store may write different values to one place.

    PTX leaves open which of them is last; elsewhere that is a fault.
    """
    machine = engine()
    machine.open_stores(True)
    try:
        yield
    finally:
        machine.open_stores(False)
