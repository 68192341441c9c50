"""The tables of speech encoders: of docs/benchmarks.md, and the short one of the README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..harness.record import Row, cases, read_results
from .cells import error_cell, joined, memory_cell, time_cell
from .table import best_ours, speedup_text

KERNEL, ATTENTION = "speech", "speech_attention"
_SHORT = ("10 s", "60 s", "240 s")
_DTYPES = ("fp32", "bf16")


def name_and_seconds(row: Row) -> tuple[str, str]:
    """Return what `features` says: the encoder, and how long the audio is."""
    name, _, seconds = row.features.rpartition(", ")
    return name, seconds


def long_tables(timed: Sequence[list[Row]], path: Path) -> list[str]:
    """Return the lines of the tables: of whole encoders, and of attention alone.

    timed: the cases of which something was timed. path: of the CSV.
    """
    encoders = [case for case in timed if case[0].kernel == KERNEL]
    attention = [case for case in timed if case[0].kernel == ATTENTION]
    if not encoders:
        return []
    first = encoders[0][0]
    lines = [
        f"Speech encoders of {first.layers} layers with random weights, at the sizes of published "
        f"checkpoints, from frames on, on {first.device}; torch {first.torch}, transformers "
        f"{first.transformers}; milliseconds, peak memory in MiB (`benchmarks/results/{path.name}`)"
        '. HF is Hugging Face with "sdpa" where the family has it. In batches all but the first '
        "have padding. What is missing was not timed; the file says why in `reason`.",
        "",
        "| encoder | audio | batch x frames | dtype | HF | HF compiled | ours | ours compiled "
        "| over HF | over HF compiled | memory (HF's) | error (HF's) |",
        "|---|--:|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        *(_line({row.provider: row for row in case}) for case in encoders),
    ]
    if attention:
        lines += [
            "",
            "Attention of one layer alone, its linear layers with it:",
            "",
            "| encoder | audio | batch x frames | dtype | HF | ours | over HF | memory (HF's) |",
            "|---|--:|---|---|--:|--:|--:|--:|",
            *(_attention_line({row.provider: row for row in case}) for case in attention),
        ]
    return lines


def short_table(files: Sequence[Path]) -> str:
    """Return the table for the README of the CSVs that have speech encoders: a line for each.

    Raises ValueError where none has.
    """
    found = {path: [row for row in read_results(path) if _is_short(row)] for path in files}
    tables = [_short(rows, path) for path, rows in found.items() if rows]
    if not tables:
        raise ValueError("no results CSV holds timed rows of speech encoders")
    return "\n\n".join(tables)


def _is_short(row: Row) -> bool:
    return row.kernel in (KERNEL, ATTENTION) and row.batch == 1 and row.status == "ok"


def _short(rows: Sequence[Row], path: Path) -> str:
    names = dict.fromkeys(name_and_seconds(row)[0] for row in rows if row.kernel == KERNEL)
    first = next(row for row in rows if row.kernel == KERNEL)
    lines = [
        f"Times as fast as Hugging Face in {' / '.join(_DTYPES)}, by the length of the audio, on "
        f"{first.device} ({first.layers} layers, random weights; torch {first.torch}, transformers "
        f"{first.transformers}; `python -m benchmarks speech`, `benchmarks/results/{path.name}`):",
        "",
        f"| encoder | {' | '.join(_SHORT)} | memory of attention, 240 s |",
        "|---|--:|--:|--:|--:|",
    ]
    for name in names:
        own = [row for row in rows if name_and_seconds(row)[0] == name]
        lines.append(joined([name, *(_speedups(own, s) for s in _SHORT), _short_memory(own)]))
    return "\n".join(lines)


def _speedups(rows: Sequence[Row], seconds: str) -> str:
    found = {
        row.dtype: row.speedup_over_hf_eager
        for row in rows
        if (row.kernel, row.provider) == (KERNEL, "ours") and name_and_seconds(row)[1] == seconds
    }
    cells = [speedup_text(found.get(dtype)) or "-" for dtype in _DTYPES]
    return " / ".join(cells) if found else "-"


def _short_memory(rows: Sequence[Row]) -> str:
    for case in cases(r for r in rows if (r.kernel, r.dtype) == (ATTENTION, "fp32")):
        by_name = {row.provider: row for row in case}
        ours, eager = by_name.get("ours"), by_name.get("hf_eager")
        if name_and_seconds(case[0])[1] == "240 s" and ours and eager:
            return f"{memory_cell(ours)} MiB for {memory_cell(eager)}"
    return "-"


def _line(by_name: dict[str, Row]) -> str:
    ours, eager, best = by_name.get("ours"), by_name.get("hf_eager"), best_ours(by_name)
    names = ("hf_eager", "hf_compile", "ours", "ours_compile")
    return joined([
        *_begin(by_name),
        *(time_cell(by_name.get(name)) for name in names),
        speedup_text(ours.speedup_over_hf_eager) if ours else "",
        speedup_text(best.speedup_over_hf_compile) if best else "",
        f"{memory_cell(ours)} ({memory_cell(eager)})",
        error_cell(ours, eager),
    ])  # fmt: skip


def _attention_line(by_name: dict[str, Row]) -> str:
    ours, eager = by_name.get("ours"), by_name.get("hf_eager")
    return joined([
        *_begin(by_name),
        time_cell(eager),
        time_cell(ours),
        speedup_text(ours.speedup_over_hf_eager) if ours else "",
        f"{memory_cell(ours)} ({memory_cell(eager)})",
    ])  # fmt: skip


def _begin(by_name: dict[str, Row]) -> list[str]:
    row = next(iter(by_name.values()))
    return [*name_and_seconds(row), f"{row.batch}x{row.length}", row.dtype]
