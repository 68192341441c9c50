"""What a qualification found, for people: a table, the faults, one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from xlnet_fast.ops.qualification import files
from xlnet_fast.ops.qualification.identity import identity_of
from xlnet_fast.ops.qualification.record import (
    BACKWARD,
    FORWARD,
    NOT_RUN,
    PASSED,
    STATUSES,
    UNAVAILABLE,
    Row,
    read,
)
from xlnet_fast.qualifier.run import Outcome

_STYLES = {PASSED: "green", UNAVAILABLE: "dim", NOT_RUN: "dim"}
_COLUMNS = ("backend", "calls", "dtype", "D")


def show(outcome: Outcome, console: Console | None = None) -> None:
    """Print it."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console = Console(file=console.file, width=max(console.width, 132), highlight=False)
    identity = outcome.record.identity
    console.print(_table(outcome.rows, f"Qualification of {identity.name}"))
    for text in _reasons(outcome.rows):
        console.print(Text(text))
    for name, tile in outcome.record.tiles.items():
        block_m, block_n, num_warps, _, maxnreg, *_ = tile
        said = f"{block_m}x{block_n}, {num_warps} warps of up to {maxnreg} registers a thread"
        console.print(Text(f"tile of {name}: {said}, the fastest here"), soft_wrap=True)
    console.print(Text(verdict(outcome), style="bold"), soft_wrap=True)
    console.print(Text(f"record: {outcome.path}"), soft_wrap=True)


def show_file(path: Path, as_json: bool = False) -> None:
    """Print the record in a file, and whether it counts for this machine's first such device.

    Raises:
        ArgumentError: the file cannot be read, or is no record of this version.
    """
    record = read(path)
    if as_json:
        print(record.to_json(), end="")
        return
    show(Outcome(record, record.rows, path))
    device = record.identity.device
    if device == "cuda" and not torch.cuda.is_available():
        differs: str | None = "PyTorch sees no GPU"
    else:
        differs = record.identity.difference(identity_of(torch.device(device, 0)))
    counts = f"stale here: {differs}" if differs else "it counts here"
    if os.environ.get(files.FILE_VARIABLE) == "none":
        counts += f", but {files.SWITCHED_OFF}"
    print(f"made {record.created}, {counts}")


def verdict(outcome: Outcome) -> str:
    """One sentence: what passed, what did not, and what comes of it."""
    counts = {status: sum(row.status == status for row in outcome.rows) for status in STATUSES}
    told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count)
    name = outcome.record.identity.name
    if outcome.bad:
        backends = ", ".join(sorted({row.backend for row in outcome.bad}))
        return (
            f"Not everything is right on {name} ({told}): what did not pass of {backends} is "
            f"not taken by backend='auto'"
        )
    if not counts[PASSED]:
        return f"Nothing was proved on {name}: {told}"
    winners = _fastest(outcome.rows)
    fastest = ", ".join(f"{backend} {count}" for backend, count in winners.items())
    more = "; give more --minutes to reach the rest" if counts[NOT_RUN] else ""
    wins = f"; fastest, by the number of classes: {fastest}" if fastest else ""
    if counts[NOT_RUN] > counts[PASSED]:
        return f"Too little was reached on {name} to say much: {told}{more}"
    return f"Nothing is wrong on {name}: {told}{more}{wins}"


def _fastest(rows: Iterable[Row]) -> dict[str, int]:
    """By backend, of how many classes it is the fastest that passed; the baseline is one, too."""
    best: dict[tuple[str, ...], tuple[float, str]] = {}
    for row in rows:
        speed = row.speedup("baseline") if row.status == PASSED else None
        if speed is None:
            continue
        plain = (1.0, "aten" if row.op == "linear" else "sdpa")
        best[row.key] = max(best.get(row.key, plain), (speed, row.backend))
    counts: dict[str, int] = {}
    for _, backend in best.values():
        counts[backend] = counts.get(backend, 0) + 1
    return dict(sorted(counts.items()))


def _table(rows: Iterable[Row], title: str) -> Table:
    """A line for each class, forward beside backward."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in _COLUMNS:
        table.add_column(column, no_wrap=True, min_width=None if column == "calls" else len(column))
    for column in ("forward", "x plain", "x HF", "backward", "x plain", "x HF"):
        number = column.startswith("x ")
        justify: JustifyMethod = "right" if number else "left"
        table.add_column(column, justify=justify, no_wrap=True, min_width=5 if number else 6)
    lines: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        place = (row.backend, f"{row.op} {row.operands}", row.dtype, row.head_dim)
        lines.setdefault(place, {})[row.direction] = row
    for name, directions in lines.items():
        cells = [Text(cell) for cell in name]
        for direction in (FORWARD, BACKWARD):
            cells += _cells(directions.get(direction))
        table.add_row(*cells)
    return table


def _cells(row: Row | None) -> list[Text]:
    if row is None:
        return [Text("-"), Text(""), Text("")]
    state = Text(row.status.replace("_", " "), style=_STYLES.get(row.status, "bold red"))
    speeds = (row.speedup("baseline"), row.speedup("hf"))
    return [state, *(Text("" if speed is None else f"{speed:.2f}") for speed in speeds)]


def _reasons(rows: Iterable[Row]) -> list[str]:
    """Why something did not pass: faults one by one, what could not run once for each reason."""
    faults: dict[tuple[str, str, str], list[str]] = {}
    lacking: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        if row.status == UNAVAILABLE:
            lacking.setdefault((row.backend, row.reason), {})[row.op] = None
        elif row.status not in (PASSED, NOT_RUN):
            where = f"{row.op} {row.operands} {row.dtype} {row.head_dim}".strip()
            cause = (row.status, row.backend, row.reason)
            faults.setdefault(cause, []).append(f"{where}, {row.direction}")
    told = [
        f"unavailable: {backend}, {', '.join(ops)}: {reason}"
        for (backend, reason), ops in lacking.items()
    ]
    lines = [
        f"{status}: {backend}, {where[0]}{_and_more(len(where) - 1)}: {reason}"
        for (status, backend, reason), where in faults.items()
    ]
    return [*told, *_shortened(lines)]


def _and_more(count: int) -> str:
    return f" and {count} more" if count else ""


def _shortened(faults: list[str], most: int = 12) -> list[str]:
    left = len(faults) - most
    return faults if left <= 0 else [*faults[:most], f"and {left} more; the record has them all"]
