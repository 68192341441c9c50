"""The command `xlnet-fast kernels-report`: compile, show, judge, write."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from xlnet_fast import files
from xlnet_fast.builder.progress import Progress as Lines
from xlnet_fast.errors import ArgumentError, BackendUnavailable, XLNetFastError
from xlnet_fast.kernels.report import cuda, tile_search, triton
from xlnet_fast.kernels.report.rows import PRAISE, Row, check
from xlnet_fast.kernels.report.tables import render

BACKENDS = {"triton": triton, "cuda": cuda}
"""The modules that know how to compile the kernels of a backend."""

_WIDTH = 170  # where the output is a file or a pipe, whose width nobody knows


def known_archs(backends: Sequence[str] = ()) -> tuple[int, ...]:
    """The chips that all of the backends can compile for; default as `run_report`."""
    names, _ = _to_compile(backends)
    return tuple(sorted(set.intersection(*(set(BACKENDS[name].known_archs()) for name in names))))


def run_report(
    json_path: Path | None, archs: Sequence[int] | None = None, backends: Sequence[str] = ()
) -> int:
    """Print the report with its verdict; optionally write it as JSON.

    Args:
        json_path: file for the list of rows, each with its "backend", or None.
        archs: chips; default each backend's `ARCHS`.
        backends: of `BACKENDS`; default all, but those of CUDA C++ only where there is an nvcc.

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
        names, left_out = _to_compile(backends)
        if left_out is not None:
            console.print(f"the CUDA C++ kernels are left out: {left_out}", markup=False)
        if "triton" in names:
            console.print(triton.tiles_taken(), markup=False)
        rows: list[Row] = []
        for name in names:
            asked = archs or BACKENDS[name].ARCHS
            with _counting(console, name) as on_progress:
                rows += BACKENDS[name].compile_report(asked, on_progress=on_progress)
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


def _to_compile(backends: Sequence[str]) -> tuple[list[str], str | None]:
    """(the backends to compile, why that of CUDA C++ is not among those of the default)."""
    if backends:
        return list(backends), None
    try:
        cuda.find_nvcc()
    except BackendUnavailable as error:
        return ["triton"], str(error)
    return list(BACKENDS), None


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
