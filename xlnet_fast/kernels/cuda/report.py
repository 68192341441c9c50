"""Compile the CUDA C++ kernels for real chips, on any machine with nvcc, without a GPU.

nvcc gets the flags of the extension's build, so these are the bits that would run. What ptxas says
of a kernel (registers, spills, static shared memory) is joined with what its machine code shows:
tensor-core instructions, copies, barriers, and which of them are in innermost loops.

What nvcc made of a source is kept in the user's cache under a hash of all that decides it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table

from xlnet_fast import files
from xlnet_fast.builder import nvcc, recipe
from xlnet_fast.builder.nvcc import Nvcc
from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.kernels import sass
from xlnet_fast.kernels.chips import CHIPS, KIB, SHARED_LIMITS, blocks_per_multiprocessor
from xlnet_fast.kernels.cuda import fit, ptxas

ARCHS = (80, 90)
PRODUCT = "HMMA"
COUNTED = (PRODUCT, "LDSM", "LDGSTS", "BAR", "MUFU")
"""Instructions shown: matrix product, load of its operands, asynchronous copy, barrier, exp2 and
the like."""

PRAISE = "kernels: no spill in a loop, tensor cores where they belong, room as the last table says"
_NAMES = {90: "90a"}  # as the extension is built
_NEEDS_TENSOR_CORES = "rel_attention"


def find_nvcc() -> Nvcc:
    """The nvcc that the extension would be built with.

    Raises:
        BackendUnavailable: there is none, or no CUDA source to compile.
        ArgumentError: `XLNET_FAST_CUDA_ARCHS` is malformed.
    """
    if not recipe.cuda_sources():
        raise BackendUnavailable(f"there is no CUDA source below {recipe.csrc() / 'cuda'}")
    try:
        return nvcc.find()
    except nvcc.LeftOut as error:
        raise BackendUnavailable(str(error)) from error
    except ValueError as error:
        raise ArgumentError(str(error)) from error


def known_archs() -> tuple[int, ...]:
    """The chips of `CHIPS` that the nvcc here compiles for; raises as `find_nvcc`."""
    known = nvcc.known_archs(find_nvcc().command)
    return tuple(arch for arch in CHIPS if str(arch) in known)


def compile_report(
    archs: Sequence[int] = ARCHS,
    *,
    sources: str | None = None,
    workers: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Compile every CUDA source for every chip.

    Args:
        archs: chips, 90 for sm_90a.
        sources: pattern of the file names to compile, "rel_attention_*"; default all, but of a
            kernel for fp16 that there is for bf16 too only the latter: they differ in conversions.
        workers: compilers at a time.
        on_progress: called with (done, total) after each compilation.

    Returns:
        One dict per kernel and chip, in the order of the sources; None is what is unknown.
        source, kernel, arch;
        of a thread: registers, stack_bytes, spill_bytes (stored and loaded);
        loop_spills: accesses to local memory in innermost loops; product_loop_spills: those in the
        innermost loops with a product on tensor cores, what is inside them included;
        of a block: max_threads (by the launch bounds, and so many are launched), shared_bytes
        (static) and dynamic_bytes; blocks: how many fit on a multiprocessor, at most so many where
        dynamic_bytes is None;
        instructions and loop_instructions (of the loops with a product, or of innermost loops where
        there is none): of each of `COUNTED`, and "all".

    Raises:
        BackendUnavailable: no nvcc, no source, no disassembler.
        ArgumentError: a chip that is not known, or a source that does not compile.
    """
    compiler, known = find_nvcc(), known_archs()
    for arch in archs:
        if arch not in known:
            raise ArgumentError(f"arch {arch!r} is not one of {', '.join(map(str, known))}")
    jobs = [(source, arch) for source in _matching(sources) for arch in archs]
    done: dict[tuple[Path, int], list[dict[str, Any]]] = {}
    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(_compile, compiler, *job): job for job in jobs}
        try:
            for future in as_completed(futures):
                done[futures[future]] = future.result()
                if on_progress is not None:
                    on_progress(len(done), len(jobs))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return [_with_blocks(row) for job in jobs for row in done[job]]


def _matching(pattern: str | None) -> list[Path]:
    """The sources that a pattern names; by default one for both half precisions."""
    everything = recipe.cuda_sources()
    if pattern is None:
        names = {source.name for source in everything}
        return [
            source
            for source in everything
            if "_float16" not in source.name
            or source.name.replace("_float16", "_bfloat16") not in names
        ]
    matching = [source for source in everything if source.match(pattern)]
    if not matching:
        raise ArgumentError(f"no CUDA source matches {pattern!r}")
    return matching


def _with_blocks(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the dynamic shared memory that the kernel's name tells, and how many blocks fit.

    The last template argument of a kernel whose shared memory is a constant is its bytes
    (`csrc/cuda/launch.h`).
    """
    told = re.fullmatch(r"(.*), (\d+)>", row["kernel"])
    dynamic_bytes = int(told[2]) if told else None
    blocks = None
    if row["max_threads"] is not None:
        blocks = blocks_per_multiprocessor(
            row["arch"], row["registers"], row["max_threads"],
            fit.needed_bytes(row | {"dynamic_bytes": dynamic_bytes}),
        )  # fmt: skip
    kernel = f"{told[1]}>" if told else row["kernel"]
    return row | {"kernel": kernel, "dynamic_bytes": dynamic_bytes, "blocks": blocks}


# --- compiling -----------------------------------------------------------------------------------


def _compile(compiler: Nvcc, source: Path, arch: int) -> list[dict[str, Any]]:
    """The kernels of one source for one chip, out of the cache where they are in there."""
    name = _NAMES.get(arch, str(arch))
    only = compiler._replace(archs=(name,))
    cached = _cache_file(only, source)
    if cached is not None and cached.is_file():
        kept: list[dict[str, Any]] = json.loads(cached.read_text(encoding="utf-8"))
        return kept
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        said = _run_nvcc(only, source, cubin)
        usage = ptxas.parse_usage(said)
        code = _disassemble(cubin) if usage else {}
    shown = f"csrc/{source.relative_to(recipe.csrc()).as_posix()}"
    names = ptxas.demangle(list(usage))
    rows = [
        {"source": shown, "kernel": ptxas.short_name(names[mangled]), "arch": arch}
        | used
        | _seen_in(code[mangled])
        for mangled, used in usage.items()
    ]
    rows.sort(key=lambda row: str(row["kernel"]))
    if cached is not None:
        _keep(cached, rows)
    return rows


def _run_nvcc(compiler: Nvcc, source: Path, cubin: Path) -> str:
    """Compile for the one chip of `compiler`; what ptxas says of the kernels."""
    (name,) = compiler.archs
    command = [
        *compiler.command, *nvcc.FLAGS, f"-gencode=arch=compute_{name},code=sm_{name}",
        "-Xptxas", "-v", "-cubin", str(source), "-o", str(cubin),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        raise ArgumentError(
            f"{source} does not compile for sm_{name}, nvcc ends with exit code {done.returncode}"
            f"{nvcc.last_lines(done.stdout + done.stderr)}"
        )
    return done.stdout + done.stderr


def _disassemble(cubin: Path) -> dict[str, sass.Function]:
    tool = sass.nvdisasm()
    done = subprocess.run([tool, str(cubin)], capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        raise ArgumentError(f"{tool} cannot read what nvcc made: {done.stderr.strip()}")
    return sass.functions(done.stdout)


def _seen_in(code: sass.Function) -> dict[str, Any]:
    """What the machine code of a kernel shows."""
    innermost = sass.in_innermost_loops(code)
    with_product = sass.in_innermost_loops(code, around=PRODUCT)
    return {
        "max_threads": code.max_threads,
        "loop_spills": sass.local_accesses(innermost),
        "product_loop_spills": sass.local_accesses(with_product),
        "instructions": sass.count(code.instructions, COUNTED),
        "loop_instructions": sass.count(with_product or innermost, COUNTED),
    }


# --- the cache -----------------------------------------------------------------------------------


def _cache_file(compiler: Nvcc, source: Path) -> Path | None:
    """Where the rows of a source are kept; None for a user without a home."""
    root = recipe.cache_root()
    if root is None:
        return None
    total = hashlib.sha256(f"{compiler.version} {compiler.archs} {nvcc.FLAGS}".encode())
    readers = (Path(__file__), Path(sass.__file__))
    for file in (*readers, *_closure(source)):
        content = file.read_bytes()
        total.update(f"{file.name} {len(content)}\n".encode() + content)
    return root / "kernels-report" / f"{total.hexdigest()[:32]}.json"


def _closure(source: Path) -> list[Path]:
    """A source with all of our own headers that it may include, in a fixed order."""
    found: dict[Path, None] = {}
    waiting = [source.resolve()]
    while waiting:
        file = waiting.pop()
        if file in found or not file.is_file():
            continue
        found[file] = None
        text = file.read_text(encoding="utf-8")
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', text, flags=re.MULTILINE):
            waiting.append((file.parent / name).resolve())
    return list(found)


def _keep(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write a file of the cache whole or not at all; a cache that cannot be written to is none."""
    with contextlib.suppress(OSError):
        files.write_whole(file, json.dumps(rows))


# --- the verdict ---------------------------------------------------------------------------------


def check(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is wrong with a report, a sentence each."""
    problems = []
    for row in rows:
        name = f"{row['kernel']} on sm_{row['arch']}"
        if row["loop_spills"] > 0:
            problems.append(f"{name} spills registers in {row['loop_spills']} places of a loop")
        limit = SHARED_LIMITS[row["arch"]]
        if not fit.fits(row) and (limit >= fit.AMPLE or fit.tile_of(row) is None):
            problems.append(
                f"{name} needs {fit.needed_bytes(row)} bytes of shared memory, the chip has {limit}"
            )
        if _NEEDS_TENSOR_CORES in row["kernel"] and row["instructions"][PRODUCT] == 0:
            problems.append(f"{name} does not use the tensor cores: it has no {PRODUCT}")
    return problems


def render(rows: Sequence[dict[str, Any]]) -> Group:
    """The report as one table per kernel, a line per instantiation and chip; problems in red.

    Columns: template arguments, chip, threads of a block, registers and spilled bytes of a thread,
    spills in innermost loops / in loops with a product, KiB of shared memory, blocks that fit on a
    multiprocessor ("≥" and "≤" where the dynamic shared memory is unknown), instructions, each in
    the loops with a product (without one: in innermost loops) / in all. What does not fit on a chip
    that lacks room for every kernel is yellow. The last table has what runs on every chip.
    """
    tables: dict[str, Table] = {}
    for row in rows:
        kernel, _, arguments = row["kernel"].partition("<")
        if kernel not in tables:
            table = tables[kernel] = Table(title=kernel, box=SIMPLE, pad_edge=False)
            for heading in ("of", "chip"):
                table.add_column(heading, no_wrap=True)
            for heading in ("threads", "regs", "spill B", "in loops", "KiB", "blocks"):
                table.add_column(heading, justify="right", no_wrap=True)
            for heading in (*COUNTED, "all"):
                table.add_column(heading, justify="right", no_wrap=True)
        counts = [
            f"{row['loop_instructions'][name]}/{row['instructions'][name]}"
            for name in (*COUNTED, "all")
        ]
        tables[kernel].add_row(
            arguments.removesuffix(">") or "-", f"sm_{row['arch']}", _or_dash(row["max_threads"]),
            str(row["registers"]), str(row["spill_bytes"]),
            f"{row['loop_spills']}/{row['product_loop_spills']}", _shared(row), _blocks(row),
            *counts, style="bold red" if check([row]) else None if fit.fits(row) else "yellow",
        )  # fmt: skip
    return Group(*tables.values(), *fit.what_runs(rows))


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def _shared(row: Mapping[str, Any]) -> str:
    return f"{'≥' if row['dynamic_bytes'] is None else ''}{fit.needed_bytes(row) / KIB:.1f}"


def _blocks(row: Mapping[str, Any]) -> str:
    if not fit.fits(row):
        return "does not fit"
    bound = "≤" if row["dynamic_bytes"] is None and row["blocks"] is not None else ""
    return bound + _or_dash(row["blocks"])
