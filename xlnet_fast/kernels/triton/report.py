"""Compile every configuration of the Triton kernels for real chips, on any machine, without a GPU.

`triton.compile` needs a target, not a device. Registers and local memory are read from the cubin
with the `cuobjdump` that ships with Triton: these are the bits that would run, assembled with
Triton's own flags. Local memory in a Triton kernel is spilled registers, nothing else.

Each kernel's module lists its own `Compilation`s, with the optional arguments that cost it the most
registers; this module knows no kernel.
"""

from __future__ import annotations

import importlib
import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table

from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.kernels import ptx, sass
from xlnet_fast.kernels.chips import KIB, SHARED_LIMITS
from xlnet_fast.kernels.triton import IMPORT_ERROR, INTERPRETED, triton
from xlnet_fast.kernels.triton.compilation import Compilation
from xlnet_fast.kernels.triton.tiles import installed_table

Task = TypeVar("Task")
Result = TypeVar("Result")

SPILL_LIMIT = 128
"""Bytes of registers that a thread may spill, none of them in an innermost loop: ptxas parks a few
scalars of the loops over tiles rather than narrow its schedule (docs/measured.md)."""

PAIRED_SPILL_LIMIT = 256
PAIRED_LOOP_SPILLS = 16
"""The same of a tile of which two programs share a multiprocessor, and how often its innermost
loops may access such registers: a few beside hundreds of instructions a tile. It is taken where it
was measured to be the faster, never untimed."""

PRAISE = (
    "compilations: no spill in a loop but of tiles that are to be timed first, shared memory "
    "within each chip's limit, a barrier between "
    "every store to a strip and the loads that follow it"
)
ARCHS = (80, 86, 89, 90, 100)
MODULES = ("rel_attention", "masked_softmax", "concat_memory", "philox")
"""Modules of `kernels/triton` with a function `compilations(arch)`, in the order of the report."""


@dataclass(frozen=True)
class Job:
    """One compilation, by what another process can find it with: a jit function cannot travel."""

    arch: int
    module: str
    number: int  # in what the module's `compilations(arch)` yields


def known_archs() -> tuple[int, ...]:
    """The chips of `SHARED_LIMITS` that the installed assembler can build for."""
    require_compiler()
    tool = triton.knobs.nvidia.ptxas_blackwell.path
    listed = subprocess.run([tool, "--help"], capture_output=True, text=True, check=True).stdout
    names = {int(number) for number in re.findall(r"sm_(\d+)", listed)}
    return tuple(arch for arch in SHARED_LIMITS if arch in names)


def tiles_taken() -> str:
    """Which tiles the attention kernels take with the installed Triton, and how far to trust them.

    Raises:
        BackendUnavailable: Triton is missing or runs as an interpreter.
    """
    require_compiler()
    table, remark = installed_table()
    chips = ", ".join(f"sm_{arch}" for arch in table.archs)
    checked = f"Triton {triton.__version__}: tiles for {table.release}, chosen on {chips}"
    if table.spilling:
        checked += f"; no tile without a spill was found for {', '.join(table.spilling)}"
    return checked if remark is None else f"{checked}; {remark}"


def compile_report(
    archs: Sequence[int] = ARCHS,
    *,
    kernels: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    head_dims: Sequence[int] | None = None,
    features: Sequence[str] | None = None,
    modules: Sequence[str] = MODULES,
    workers: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Compile the kernels in every configuration for every chip.

    Args:
        archs: chips, 90 for sm_90.
        kernels: names of kernels, "masked_softmax_forward"; default all.
        dtypes: of "fp16", "bf16", "fp32"; default all.
        head_dims: default all. A kernel without a head dim takes part whatever is asked for.
        features: labels of sets of optional arguments; default all.
        modules: of `MODULES`.
        workers: processes; 1 compiles in this one.
        on_progress: called with (done, total) after each compilation.

    Returns:
        One dict per compilation: kernel, variant, features, arch, dtype, head_dim (or None),
        block_m and block_n (as many as the tile has), num_warps, num_stages, maxnreg (the limit of
        registers, or None), registers (per
        thread), spill_bytes (per thread),
        loop_spills (accesses to those in innermost loops), shared_bytes (per block), gemm_units
        (matrix products per
        score tile, or None), disorder (sentences on scratch memory read or overwritten without a
        barrier), is_paired (whether the tile is to be timed before it is taken). By chip, in the
        order of the modules.

    Raises:
        BackendUnavailable: Triton is missing or runs as an interpreter; a process was killed.
        ArgumentError: a name or number that no compilation has; a failing compilation.
    """
    require_compiler()
    _expect_known("arch", archs, known_archs())
    _expect_known("module", modules, MODULES)
    wanted = {"kernel": kernels, "dtype": dtypes, "head_dim": head_dims, "features": features}
    everything = {
        Job(arch, module, number): compilation
        for arch in archs
        for module in modules
        for number, compilation in enumerate(_compilations(module, arch))
    }
    for name, values in wanted.items():
        known = {getattr(compilation, name) for compilation in everything.values()} - {None}
        _expect_known(name, values or (), sorted(known))
    jobs = [job for job, compilation in everything.items() if _matches(compilation, wanted)]
    rows: dict[Job, dict[str, Any]] = {}
    for job, row in run_tasks(_compile, jobs, workers):
        rows[job] = row
        if on_progress is not None:
            on_progress(len(rows), len(jobs))
    return [rows[job] for job in jobs]


def _expect_known(name: str, values: Sequence[Any], known: Sequence[Any]) -> None:
    for value in values:
        if value not in known:
            raise ArgumentError(f"{name} {value!r} is not one of {', '.join(map(str, known))}")


def _matches(compilation: Compilation, wanted: Mapping[str, Sequence[Any] | None]) -> bool:
    """Whether each attribute is one of those wanted; None wants all, an attribute None is all."""
    given = ((getattr(compilation, name), values) for name, values in wanted.items())
    return all(values is None or value is None or value in values for value, values in given)


@cache
def _compilations(module: str, arch: int) -> tuple[Compilation, ...]:
    """What a module wants compiled for a chip."""
    source = importlib.import_module(f"xlnet_fast.kernels.triton.{module}")
    return tuple(source.compilations(arch))


def check(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is wrong with a report: a sentence per spill and per excess of shared memory."""
    problems = []
    for row in rows:
        head_dim = "" if row["head_dim"] is None else f" head_dim {row['head_dim']}"
        tile = f" tile {_tile(row)}" if "block_m" in row else ""
        name = (
            f"{row['kernel']} ({row['variant']}, {row.get('features', '-')}) "
            f"{row['dtype']}{head_dim}{tile} on sm_{row['arch']}"
        )
        is_paired = row.get("is_paired", False)
        loop_limit = PAIRED_LOOP_SPILLS if is_paired else 0
        limit = PAIRED_SPILL_LIMIT if is_paired else SPILL_LIMIT
        if row["loop_spills"] > loop_limit:
            problems.append(f"{name} spills registers in {row['loop_spills']} places of a loop")
        if row["spill_bytes"] > limit:
            problems.append(
                f"{name} spills {row['spill_bytes']} bytes of registers per thread, more than "
                f"{limit}"
            )
        limit = SHARED_LIMITS[row["arch"]]
        if row["shared_bytes"] > limit:
            problems.append(
                f"{name} needs {row['shared_bytes']} bytes of shared memory, the chip has {limit}"
            )
        problems += [f"{name}, PTX, {sentence}" for sentence in row["disorder"]]
    return problems


def render(rows: Sequence[dict[str, Any]]) -> Group:
    """The report as one table per kernel and variant, a line per compilation; problems in red.

    Columns: chip, dtype, head dim D, features, tile with its warps and pipeline stages, registers
    and spilled bytes per thread, spills in innermost loops, shared memory per block.
    """
    tables: dict[tuple[str, str], Table] = {}
    for row in rows:
        kernel, variant = row["kernel"], row["variant"]
        if (kernel, variant) not in tables:
            table = tables[kernel, variant] = Table(
                title=_title(kernel, variant, row["gemm_units"]),
                box=SIMPLE,
                pad_edge=False,
            )
            for heading in ("chip", "dtype", "D", "features", "tile"):
                table.add_column(heading, no_wrap=True)
            for heading in ("regs", "spill B", "in loops", "KiB"):
                table.add_column(heading, justify="right", no_wrap=True)
        head_dim = "-" if row["head_dim"] is None else str(row["head_dim"])
        tables[kernel, variant].add_row(
            f"sm_{row['arch']}", row["dtype"], head_dim, row.get("features", "-"),
            f"{_tile(row)}, {row.get('num_warps', '-')}, {row.get('num_stages', '-')}",
            str(row["registers"]),
            str(row["spill_bytes"]), str(row["loop_spills"]),
            f"{row['shared_bytes'] / KIB:.1f}",
            style="bold red" if check([row]) else None,
        )  # fmt: skip
    return Group(*tables.values())


def _title(kernel: str, variant: str, gemm_units: float | None) -> str:
    title = kernel if variant == "-" else f"{kernel}, variant {variant}"
    if gemm_units is None:
        return title
    return f"{title}: {gemm_units:g} matrix products per tile"


def _tile(row: Mapping[str, Any]) -> str:
    return "x".join(str(row[key]) for key in ("block_m", "block_n") if key in row) or "-"


def require_compiler() -> None:
    """Raise BackendUnavailable where nothing can be compiled, with the reason."""
    if triton is None:
        raise BackendUnavailable(
            f"Triton cannot be imported ({IMPORT_ERROR}); `pip install triton` on Linux, with or "
            "without a GPU"
        )
    if INTERPRETED:
        raise BackendUnavailable(
            "TRITON_INTERPRET is set: unset it, an interpreter compiles nothing"
        )


def run_tasks(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Iterator[tuple[Task, Result]]:
    """Each task with what the function of a module makes of it, as it is done.

    Raises:
        BackendUnavailable: a process was killed, or the main program is not guarded.
    """
    if workers <= 1:
        yield from ((task, function(task)) for task in tasks)
        return
    # Fork would copy the locks of torch's and LLVM's threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(function, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise BackendUnavailable(
                "a compiling process ended: it was killed, or the program that called for the "
                "report does so outside of `if __name__ == '__main__':`; workers=1 needs neither"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _compile(job: Job) -> dict[str, Any]:
    """One row of the report."""
    return measure(_compilations(job.module, job.arch)[job.number], job.arch)


def measure(compilation: Compilation, arch: int) -> dict[str, Any]:
    """Compile for a chip; a row of `compile_report`.

    Raises:
        ArgumentError: it does not compile.
    """
    from triton.backends.compiler import GPUTarget

    source = _source(compilation)
    try:
        compiled = triton.compile(
            source, target=GPUTarget("cuda", arch, 32), options=dict(compilation.options)
        )
    except Exception as error:  # Triton raises its own and C++ exceptions of many types
        name = f"{compilation.kernel} ({compilation.variant}, {compilation.features})"
        where = f"{compilation.dtype} head_dim {compilation.head_dim} on sm_{arch}"
        raise ArgumentError(
            f"{name} {where} does not compile: {type(error).__name__}: {error}"
        ) from error
    registers, spilled, in_loops = _resources(compiled.asm["cubin"])
    return {
        "kernel": compilation.kernel,
        "variant": compilation.variant,
        "features": compilation.features,
        "arch": arch,
        "dtype": compilation.dtype,
        "head_dim": compilation.head_dim,
        **dict(zip(("block_m", "block_n"), compilation.tile, strict=False)),
        "num_warps": compilation.options["num_warps"],
        "num_stages": compilation.options["num_stages"],
        "maxnreg": compilation.options.get("maxnreg"),
        "registers": registers,
        "spill_bytes": spilled,
        "loop_spills": in_loops,
        "shared_bytes": compiled.metadata.shared,
        "gemm_units": compilation.gemm_units,
        "disorder": _disorder(compilation, source.signature, compiled.asm["ptx"]),
        "is_paired": compilation.is_paired,
    }


def _disorder(compilation: Compilation, signature: Mapping[str, Any], text: str) -> list[str]:
    """What is out of order in the scratch memory of a kernel, by the name of its argument."""
    first = {}
    count = 0
    for name, kind in signature.items():
        first[name] = count
        count += _parameters(kind)
    return [
        f"{name}: {sentence}"
        for name in compilation.scratch
        for sentence in ptx.disorder(text, first[name])
    ]


def _parameters(kind: Any) -> int:
    """How many parameters of the compiled kernel an argument is."""
    if isinstance(kind, tuple):
        return sum(map(_parameters, kind))
    return 0 if kind == "constexpr" else 1


def _resources(cubin: bytes) -> tuple[int, int, int]:
    """Registers and bytes of local memory per thread, and accesses to it in innermost loops."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)

        def ask(tool: str, *flags: str) -> str:
            done = subprocess.run([tool, *flags, str(path)], capture_output=True, text=True)
            return str(done.stdout + done.stderr)

        usage = ask(triton.knobs.nvidia.cuobjdump.path, "-res-usage")
        found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
        if found is None:
            raise ArgumentError(f"cuobjdump says nothing of registers: {usage}")
        registers, stack, local = map(int, found.groups())
        spilled = stack + local
        assembly = ask(triton.knobs.nvidia.nvdisasm.path) if spilled else ""
    return registers, spilled, sass.loop_spills(assembly)


def _source(compilation: Compilation) -> Any:
    """The kernel with argument types as the launcher passes them; absent arguments are None."""
    from triton.compiler import ASTSource

    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}

    def walk(path: tuple[int, ...], kind: Any, specialised: bool) -> Any:
        """Turn absent arguments into constants, and mark what the launcher aligns as aligned."""
        if isinstance(kind, tuple):
            parts = [walk((*path, index), part, specialised) for index, part in enumerate(kind)]
            return type(kind)(*parts) if hasattr(kind, "_fields") else tuple(parts)
        if kind is None:
            constants[path] = None
            return "constexpr"
        if kind.startswith("*") or (specialised and kind.startswith("i")):
            attributes[path] = [["tt.divisibility", 16]]
        return kind

    signature = {}
    for index, parameter in enumerate(compilation.function.params):
        name = parameter.name
        if name in compilation.constants:
            constants[index,] = compilation.constants[name]
            signature[name] = "constexpr"
        else:
            specialised = compilation.aligned and not parameter.do_not_specialize
            signature[name] = walk((index,), compilation.types[name], specialised)
    return ASTSource(compilation.function, signature, constants, attributes)
