"""Which Triton kernels the report compiles, and how: for real chips, on any machine.

`triton.compile` needs a target, not a device. Registers and local memory are read from the cubin
with the `cuobjdump` that ships with Triton: these are the bits that would run, assembled with
Triton's own flags. Local memory in a Triton kernel is spilled registers, nothing else.

Each kernel's module lists its own `Compilation`s, with the optional arguments that cost it the most
registers; this module knows no kernel.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.kernels.chips import SHARED_LIMITS
from xlnet_fast.kernels.report import ptx, sass, usage
from xlnet_fast.kernels.report.jobs import expect_known, run_jobs
from xlnet_fast.kernels.report.rows import Row
from xlnet_fast.kernels.triton import IMPORT_ERROR, INTERPRETED, triton
from xlnet_fast.kernels.triton.compilation import Compilation
from xlnet_fast.kernels.triton.tiles import installed_table

ARCHS = (80, 86, 89, 90, 100)
MODULES = ("rel_attention", "masked_softmax", "concat_memory", "philox")
"""Modules of `kernels/triton` with a function `compilations(arch)`, in the order of the report."""

Job = tuple[int, str, int]
"""(arch, module, number in what its `compilations(arch)` yields), by which another process finds a
compilation: a jit function cannot travel."""


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
) -> list[Row]:
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
        A row per compilation, by chip, in the order of the modules.

    Raises:
        BackendUnavailable: Triton is missing or runs as an interpreter; a process was killed.
        ArgumentError: a name or number that no compilation has; a failing compilation.
    """
    require_compiler()
    expect_known("arch", archs, known_archs())
    expect_known("module", modules, MODULES)
    wanted = {"kernel": kernels, "dtype": dtypes, "head_dim": head_dims, "features": features}
    everything = {
        (arch, module, number): compilation
        for arch in archs
        for module in modules
        for number, compilation in enumerate(_compilations(module, arch))
    }
    jobs = list(everything)
    for name, values in wanted.items():
        if values is None:
            continue
        given = {job: getattr(compilation, name) for job, compilation in everything.items()}
        expect_known(name, values, sorted(set(given.values()) - {None}))
        jobs = [job for job in jobs if given[job] is None or given[job] in values]
    return run_jobs(_compile, jobs, workers, on_progress)


@cache
def _compilations(module: str, arch: int) -> tuple[Compilation, ...]:
    """What a module wants compiled for a chip."""
    source = importlib.import_module(f"xlnet_fast.kernels.triton.{module}")
    return tuple(source.compilations(arch))


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


def _compile(job: Job) -> Row:
    arch, module, number = job
    return measure(_compilations(module, arch)[number], arch)


def measure(compilation: Compilation, arch: int) -> Row:
    """Compile for a chip.

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
    registers, spill_bytes, loop_spills = _resources(compiled.asm["cubin"])
    sizes = cast(Row, dict(zip(("block_m", "block_n"), compilation.tile, strict=False)))
    return {
        "backend": "triton",
        "kernel": compilation.kernel,
        "variant": compilation.variant,
        "features": compilation.features,
        "arch": arch,
        "dtype": compilation.dtype,
        "head_dim": compilation.head_dim,
        **sizes,
        "num_warps": compilation.options["num_warps"],
        "num_stages": compilation.options["num_stages"],
        "maxnreg": compilation.options.get("maxnreg"),
        "registers": registers,
        "spill_bytes": spill_bytes,
        "loop_spills": loop_spills,
        "shared_bytes": compiled.metadata.shared,
        "gemm_units": compilation.gemm_units,
        "disorder": _disorder(compilation, source.signature, compiled.asm["ptx"]),
        "is_paired": compilation.is_paired,
    }


def _disorder(compilation: Compilation, signature: Mapping[str, Any], text: str) -> list[str]:
    """What is out of order in the scratch memory of a kernel, by the name of its argument."""
    parameters = [name for name, kind in signature.items() for _ in range(_parameters(kind))]
    return [
        f"{name}: {sentence}"
        for name in compilation.scratch
        for sentence in ptx.disorder(text, parameters.index(name))
    ]


def _parameters(kind: Any) -> int:
    """How many parameters of the compiled kernel an argument is."""
    if isinstance(kind, tuple):
        return sum(map(_parameters, kind))
    return 0 if kind == "constexpr" else 1


def _resources(cubin: bytes) -> tuple[int, int, int]:
    """Registers and bytes of local memory per thread, and accesses to it in innermost loops."""
    tools = triton.knobs.nvidia
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [tools.cuobjdump.path, "-res-usage", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        registers, spilled = usage.parse_cuobjdump(done.stdout + done.stderr)
        code = sass.disassemble(tools.nvdisasm.path, path, "Triton") if spilled else {}
    return registers, spilled, sum(map(sass.loop_spills, code.values()))


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
