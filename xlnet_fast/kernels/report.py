"""The report on the GPU kernels, Triton's and those of CUDA C++, compiled without a GPU."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from xlnet_fast import files
from xlnet_fast.builder.progress import Progress as Lines
from xlnet_fast.errors import ArgumentError, BackendUnavailable, XLNetFastError
from xlnet_fast.kernels.cuda import report as cuda_report
from xlnet_fast.kernels.triton import report as triton_report
from xlnet_fast.kernels.triton import tile_search

BACKENDS = {"triton": triton_report, "cuda": cuda_report}
"""The modules that know how to compile, judge and show the kernels of a backend."""

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
            console.print(triton_report.tiles_taken(), markup=False)
        rows = {name: _compile(name, archs, console) for name in names}
        if json_path is not None:
            named = [{"backend": name, **row} for name, own in rows.items() for row in own]
            _write_json(json_path, named)
    except (XLNetFastError, OSError) as error:
        console.print(f"kernels-report: {error}", style="bold red", markup=False)
        return 2
    problems = []
    for name, own in rows.items():
        module = BACKENDS[name]
        console.print(module.render(own))
        problems += module.check(own)
        if not module.check(own):
            console.print(f"{name}: {len(own)} {module.PRAISE}.", markup=False)
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
            table = tile_search.search(archs or triton_report.ARCHS, on_progress=on_progress)
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
        cuda_report.find_nvcc()
    except BackendUnavailable as error:
        return ["triton"], str(error)
    return list(BACKENDS), None


def _compile(backend: str, archs: Sequence[int] | None, console: Console) -> list[dict[str, Any]]:
    module = BACKENDS[backend]
    with _counting(console, backend) as on_progress:
        rows: list[dict[str, Any]] = module.compile_report(
            archs or module.ARCHS, on_progress=on_progress
        )
    return rows


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


def _write_json(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    files.write_whole(path, json.dumps(list(rows), indent=1) + "\n")
