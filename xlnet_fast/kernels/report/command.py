"""The command `xlnet-fast kernels-report`: compile, show, judge, write."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from xlnet_fast import files
from xlnet_fast.builder.progress import Progress as Lines
from xlnet_fast.errors import ArgumentError, BackendUnavailable, XLNetFastError
from xlnet_fast.kernels.report import cuda, pallas, tile_search, tpu, triton
from xlnet_fast.kernels.report.rows import PRAISE, AnyRow, check
from xlnet_fast.kernels.report.tables import render

BACKENDS = {"triton": triton, "cuda": cuda, "pallas": pallas}
"""The modules that know how to compile the kernels of a backend."""

Arch = int | str
"""A chip: 90 for sm_90, or the name of a TPU, for the Pallas kernels alone."""

_WIDTH = 170  # where the output is a file or a pipe, whose width nobody knows


def find_archs(names: Sequence[str], backends: Sequence[str] = ()) -> tuple[Any, ...]:
    """The chips of these names, "90" or "v5e", as `Arch`, each once.

    Args:
        backends: default as `run_report`.

    Raises:
        ArgumentError: a chip that is not known.
        BackendUnavailable: what compiles for it is missing.
    """
    if "pallas" in (backends or BACKENDS) and not set(names).isdisjoint(pallas.ARCHS):
        tpu.require_compiler()  # or a TPU would be said to be unknown
    known = {str(arch): arch for arch in known_archs(backends)} if names else {}
    for name in names:
        if name not in known:
            raise ArgumentError(
                f"--arch {name} is unknown here, expected one of: {', '.join(known)}"
            )
    return tuple(known[name] for name in dict.fromkeys(names))


def known_archs(backends: Sequence[str] = ()) -> tuple[Arch, ...]:
    """The GPUs that all of the backends for GPUs can compile for, and the TPUs of Pallas.

    Args:
        backends: default as `run_report`.
    """
    names, _ = _to_compile(backends)
    of_gpus = [set(BACKENDS[name].known_archs()) for name in names if name != "pallas"]
    gpus = sorted(set.intersection(*of_gpus)) if of_gpus else []
    return (*gpus, *(pallas.known_archs() if "pallas" in names else ()))


def run_report(
    json_path: Path | None, archs: Sequence[Arch] | None = None, backends: Sequence[str] = ()
) -> int:
    """Print the report with its verdict; optionally write it as JSON.

    Args:
        json_path: file for the list of rows, each with its "backend", or None.
        archs: chips; default each backend's `ARCHS`.
        backends: of `BACKENDS`; default those that compile for any of the chips, of CUDA C++ only
            where there is an nvcc, and of Pallas only where there are JAX and libtpu; without chips
            of the latter no more than `pallas.QUICK`.

    Returns:
        0 when all is well, 1 when a kernel is not as it should be, 2 when something asked for could
        not be compiled or written.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, _WIDTH))
    try:
        if json_path is not None and not json_path.resolve().parent.is_dir():
            raise ArgumentError(f"no folder {json_path.parent} to write {json_path.name} to")
        names, remarks = _to_compile(backends, archs or ())
        for remark in remarks:
            console.print(remark, markup=False)
        if "triton" in names:
            console.print(triton.tiles_taken(), markup=False)
        rows: list[AnyRow] = []
        for name in names:
            options: dict[str, Any] = {"archs": archs or BACKENDS[name].ARCHS}
            if not backends and archs:
                options = {"archs": _own(name, archs)}
            elif not backends and name == "pallas":
                options = dict(pallas.QUICK)
            with _counting(console, name) as on_progress:
                rows += BACKENDS[name].compile_report(**options, on_progress=on_progress)
        if json_path is not None:
            files.write_whole(json_path, json.dumps(rows, indent=1) + "\n")
    except (XLNetFastError, OSError) as error:
        console.print(f"kernels-report: {error}", style="bold red", markup=False)
        return 2
    for name in names:
        own = [row for row in rows if row["backend"] == name]
        console.print(render(own))
        if not check(own):
            console.print(f"{name}: {len(own)} {PRAISE[name]}.", markup=False)
    problems = check(rows)
    for problem in problems:
        console.print(problem, style="bold red", markup=False)
    return 1 if problems else 0


def write_tiles(archs: Sequence[int] | None = None) -> int:
    """Find tiles for the installed Triton that spill in no loop, and write them into the package.

    Args:
        archs: chips to compile for; default those of the Triton report.

    Returns:
        0 when the table is written, 1 when it is and an entry of it spills, 2 when none is found or
        it cannot be written, with a sentence; the table is as before then.
    """
    console = Console()
    try:
        with _counting(console, "entries of the table") as on_progress:
            table = tile_search.search(archs or triton.ARCHS, on_progress=on_progress)
        tile_search.write(table)
    except (XLNetFastError, OSError) as error:
        console.print(f"kernels-report: {error}", style="bold red", markup=False)
        return 2
    chips = ", ".join(f"sm_{arch}" for arch in table.archs)
    said = f"wrote {len(table.tiles)} entries for Triton {table.release}, compiled for {chips}"
    console.print(said, markup=False)
    for key in table.spilling:
        problem = f"{key}: every candidate spills, the one that does least is taken"
        console.print(problem, style="bold red", markup=False)
    return 1 if table.spilling else 0


def _to_compile(backends: Sequence[str], archs: Sequence[Arch] = ()) -> tuple[list[str], list[str]]:
    """(the backends to compile, sentences on what is not among those of the default)."""
    if backends:
        return list(backends), []
    names, remarks = [], []
    needs = {"cuda": ("CUDA C++", cuda.find_nvcc), "pallas": ("Pallas", tpu.require_compiler)}
    for name in BACKENDS:
        if archs and not _own(name, archs):
            continue
        what, require = needs.get(name, ("", None))
        try:
            if require is not None:
                require()
        except BackendUnavailable as error:
            if name == "pallas" and archs:  # nobody else compiles for a chip that was asked for
                raise
            remarks.append(f"the {what} kernels are left out: {error}")
            continue
        names.append(name)
        if name == "pallas" and not archs:
            remarks.append(pallas.NOT_IN_QUICK)
    return names, remarks


def _own(backend: str, archs: Sequence[Arch]) -> tuple[Arch, ...]:
    """Of the chips those of a backend's kind: TPUs have names, GPUs numbers."""
    return tuple(arch for arch in archs if isinstance(arch, str) == (backend == "pallas"))


@contextlib.contextmanager
def _counting(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """What hears how many compilations of all are done: a bar, or lines where no terminal is."""
    if not console.is_terminal:
        with Lines(lambda line: print(line, file=sys.stderr, flush=True)) as lines:
            lines.note(f"compiling {what}")
            yield lambda done, total: lines.note(f"compiling {what}: {done} of {total}")
        return
    words = TextColumn(f"compiling {what}")
    columns = (words, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("compiling", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
