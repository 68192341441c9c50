"""Compile every configuration of the Triton kernels for real chips, on any machine, without a GPU.

`triton.compile` needs a target, not a device. Registers and local memory are read from the cubin
with the `cuobjdump` that ships with Triton: these are the bits that would run, assembled with
Triton's own flags. Local memory in a Triton kernel is spilled registers, nothing else.

A configuration is compiled with the arguments that cost it the most registers, see `FEATURES`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from xlnet_fast.errors import ArgumentError, BackendUnavailable, XLNetFastError
from xlnet_fast.kernels.triton import IMPORT_ERROR, INTERPRETED, rel_attention, triton

KIB = 1024
SHARED_LIMITS = {
    80: 163 * KIB, 86: 99 * KIB, 89: 99 * KIB, 90: 227 * KIB, 100: 227 * KIB, 120: 99 * KIB,
}  # fmt: skip
"""Shared memory that one block may use, bytes, by chip (CUDA C++ Programming Guide, table of
compute capabilities)."""

ARCHS = (80, 86, 89, 90, 100)
HEAD_DIMS = (32, 64, 128)  # one of each tile width
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Features:
    """Which optional arguments a compiled kernel has, beyond segments, padding and causality."""

    heavy: bool  # which of the two tiles `choose_config` gives
    see_self: bool
    everything: bool = False  # ranks, bits, positions, dropout and a short r


FEATURES = {
    "content": Features(heavy=False, see_self=True),
    "content-all": Features(heavy=True, see_self=True, everything=True),
    "query-all": Features(heavy=True, see_self=False, everything=True),
}


@dataclass(frozen=True)
class Job:
    """One compilation."""

    arch: int
    dtype: str
    head_dim: int
    features: str


def known_archs() -> tuple[int, ...]:
    """The chips of `SHARED_LIMITS` that the installed assembler can build for."""
    _require_compiler()
    tool = triton.knobs.nvidia.ptxas_blackwell.path
    listed = subprocess.run([tool, "--help"], capture_output=True, text=True, check=True).stdout
    names = {int(number) for number in re.findall(r"sm_(\d+)", listed)}
    return tuple(arch for arch in SHARED_LIMITS if arch in names)


def compile_report(
    archs: Sequence[int] = ARCHS,
    *,
    dtypes: Sequence[str] = tuple(DTYPES),
    head_dims: Sequence[int] = HEAD_DIMS,
    features: Sequence[str] = tuple(FEATURES),
    workers: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Compile the kernel in every configuration for every chip.

    Args:
        archs: chips, 90 for sm_90.
        dtypes: of "fp16", "bf16", "fp32".
        head_dims: 1..128.
        features: keys of `FEATURES`.
        workers: processes; 1 compiles in this one.
        on_progress: called with (done, total) after each compilation.

    Returns:
        One dict per compilation: kernel, variant, features, arch, dtype, head_dim, block_m,
        block_n, num_warps, num_stages, registers (per thread), spill_bytes (per thread),
        shared_bytes (per block), gemm_units (matrix products per score tile). In the order of the
        arguments.

    Raises:
        BackendUnavailable: Triton is missing or runs as an interpreter; a process was killed.
        ArgumentError: a chip, dtype or feature set that is not known; a failing compilation.
    """
    _require_compiler()
    for name, given, allowed in (
        ("arch", archs, known_archs()),
        ("dtype", dtypes, DTYPES),
        ("features", features, FEATURES),
    ):
        for value in given:
            if value not in allowed:
                raise ArgumentError(
                    f"{name} {value!r} is not one of {', '.join(map(str, allowed))}"
                )
    jobs = [Job(a, t, d, f) for a in archs for t in dtypes for d in head_dims for f in features]
    rows: dict[Job, dict[str, Any]] = {}
    for job, row in _run(jobs, workers):
        rows[job] = row
        if on_progress is not None:
            on_progress(len(rows), len(jobs))
    return [rows[job] for job in jobs]


def check(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is wrong with a report: a sentence per spill and per excess of shared memory."""
    problems = []
    for row in rows:
        name = (
            f"{row['kernel']} ({row['variant']}, {row.get('features', '-')}) "
            f"{row['dtype']} head_dim {row['head_dim']} on sm_{row['arch']}"
        )
        if row["spill_bytes"] > 0:
            problems.append(f"{name} spills {row['spill_bytes']} bytes of registers per thread")
        limit = SHARED_LIMITS[row["arch"]]
        if row["shared_bytes"] > limit:
            problems.append(
                f"{name} needs {row['shared_bytes']} bytes of shared memory, the chip has {limit}"
            )
    return problems


def render(rows: Sequence[dict[str, Any]]) -> Group:
    """The report as one table per kernel and variant, a line per compilation; problems in red.

    Columns: chip, dtype, head dim D, features, tile and warps, registers and spilled bytes per
    thread, shared memory per block.
    """
    tables: dict[tuple[str, str], Table] = {}
    for row in rows:
        kernel, variant = row["kernel"], row["variant"]
        if (kernel, variant) not in tables:
            table = tables[kernel, variant] = Table(
                title=f"{kernel}, variant {variant}: {row['gemm_units']} matrix products per tile",
                box=SIMPLE,
                pad_edge=False,
            )
            for heading in ("chip", "dtype", "D", "features", "tile"):
                table.add_column(heading, no_wrap=True)
            for heading in ("regs", "spill B", "KiB"):
                table.add_column(heading, justify="right", no_wrap=True)
        tile = "x".join(str(row[key]) for key in ("block_m", "block_n") if key in row) or "-"
        tables[kernel, variant].add_row(
            f"sm_{row['arch']}", row["dtype"], str(row["head_dim"]), row.get("features", "-"),
            f"{tile}, {row.get('num_warps', '-')}", str(row["registers"]), str(row["spill_bytes"]),
            f"{row['shared_bytes'] / KIB:.1f}", style="bold red" if check([row]) else None,
        )  # fmt: skip
    return Group(*tables.values())


def run_report(json_path: Path | None, archs: Sequence[int] | None = None) -> int:
    """Print the report with its verdict; optionally write it as JSON.

    Args:
        json_path: file for the list of rows, or None.
        archs: chips; default `ARCHS`, and sm_120 where the installed compiler knows it.

    Returns:
        0 when all is well, 1 on a spill or too much shared memory, 2 when nothing could be compiled
        or written.
    """
    console = Console()
    columns = (TextColumn("compiling"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        if json_path is not None and not json_path.resolve().parent.is_dir():
            raise ArgumentError(f"no folder {json_path.parent} to write {json_path.name} to")
        if not archs:
            archs = [arch for arch in known_archs() if arch in (*ARCHS, 120)]
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("compiling", total=None)
            rows = compile_report(
                archs,
                on_progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
        if json_path is not None:
            _write_json(json_path, rows)
    except (XLNetFastError, OSError) as error:
        console.print(f"kernels-report: {error}", style="bold red", markup=False)
        return 2
    console.print(render(rows))
    problems = check(rows)
    for problem in problems:
        console.print(problem, style="bold red", markup=False)
    if not problems:
        console.print(
            f"{len(rows)} compilations: no spill, shared memory within each chip's limit."
        )
    return 1 if problems else 0


def _require_compiler() -> None:
    if triton is None:
        raise BackendUnavailable(
            f"Triton cannot be imported ({IMPORT_ERROR}); `pip install triton` on Linux, with or "
            "without a GPU"
        )
    if INTERPRETED:
        raise BackendUnavailable(
            "TRITON_INTERPRET is set: unset it, an interpreter compiles nothing"
        )


def _run(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Compile the jobs, yielding each as it is done."""
    if workers <= 1:
        yield from ((job, _compile(job)) for job in jobs)
        return
    # Fork would copy the locks of torch's and LLVM's threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(_compile, job): job for job in jobs}
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
    from triton.backends.compiler import GPUTarget

    features = FEATURES[job.features]
    config = rel_attention.choose_config(
        DTYPES[job.dtype], job.head_dim, job.arch, heavy=features.heavy
    )
    source = _source(job, config, features)
    target = GPUTarget("cuda", job.arch, 32)
    try:
        compiled = triton.compile(source, target=target, options=config.options)
    except Exception as error:  # Triton raises its own and C++ exceptions of many types
        raise ArgumentError(f"{job} does not compile: {type(error).__name__}: {error}") from error
    registers, local_bytes = _resources(compiled.asm["cubin"])
    return {
        "kernel": "rel_attention_forward",
        "variant": "precomputed",
        "features": job.features,
        "arch": job.arch,
        "dtype": job.dtype,
        "head_dim": job.head_dim,
        "block_m": config.block_m,
        "block_n": config.block_n,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "registers": registers,
        "spill_bytes": local_bytes,
        "shared_bytes": compiled.metadata.shared,
        "gemm_units": rel_attention.GEMM_UNITS,
    }


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory per thread, from the cubin's own tables."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = triton.knobs.nvidia.cuobjdump.path
        done = subprocess.run([tool, "-res-usage", str(path)], capture_output=True, text=True)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", done.stdout + done.stderr)
    if found is None:
        raise ArgumentError(f"cuobjdump says nothing of registers: {done.stdout}{done.stderr}")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def _source(job: Job, config: rel_attention.Config, features: Features) -> Any:
    """The kernel with argument types as the launcher passes them; absent arguments are None."""
    from triton.compiler import ASTSource

    kernel = rel_attention._forward_kernel
    scalar, row = f"*{job.dtype}", ("i32", "i32", "i32")
    every = features.everything

    def given(condition: bool, kind: str) -> str | None:
        return kind if condition else None

    types: dict[str, Any] = {
        "q": scalar, "k": scalar, "v": scalar, "bd": scalar, "out": scalar,
        "biases": (scalar, scalar, scalar),
        "segments": ("*i64", "*i64"),
        "mask": ("*u8", *(given(every, "*i32"),) * 2, given(every, "*u8")),
        "positions": given(every, "*i32"),
        "seed": given(every, "*i64"),
        "strides": (row, row, row, row, row, "i32"),
        **dict.fromkeys(("rows", "keys", "length", "heads"), "i32"),
        **dict.fromkeys(("row_0", "row_stop", "column_0", "columns"), "i32"),
        "scale": "fp32", "keep_from": "i32", "keep_scale": "fp32",
    }  # fmt: skip
    flags = {
        "CAUSAL": True, "SAME_LENGTH": True, "SEE_SELF": features.see_self,
        "SHORT_R": every, "D": -(-job.head_dim // 16) * 16,
        "BD": rel_attention.block_d(job.head_dim), "BM": config.block_m, "BN": config.block_n,
    }  # fmt: skip
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}

    def walk(path: tuple[int, ...], kind: Any) -> Any:
        """Turn absent arguments into constants, and mark what the launcher aligns as aligned."""
        if isinstance(kind, tuple):
            return tuple(walk((*path, index), part) for index, part in enumerate(kind))
        if kind is None:
            constants[path] = None
            return "constexpr"
        if kind.startswith("*") or len(path) > 1:
            attributes[path] = [["tt.divisibility", 16]]
        return kind

    signature = {}
    for index, name in enumerate(kernel.arg_names):
        if name in flags:
            constants[index,] = flags[name]
            signature[name] = "constexpr"
        else:
            signature[name] = walk((index,), types[name])
    return ASTSource(kernel, signature, constants, attributes)


def _write_json(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write so that a reader sees the old file or the whole new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(list(rows), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
