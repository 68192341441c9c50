"""The tables of Transformer-XL: of docs/benchmarks.md, and the short one of the README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..harness.record import Row, cases, read_results
from .cells import error_cell, joined, memory_cell, time_cell
from .table import shape_label, speedup_text, tokens_text

KERNEL = "transfo_xl"
# Of the README's place for it.
START = "<!-- transformer-xl:start -->"
END = "<!-- transformer-xl:end -->"
_WHAT = {"forward": "evaluation", "training_step": "training", "text": "text"}


def what(row: Row) -> str:
    """Return what was done, in a word or two."""
    word = _WHAT[row.pass_name]
    return f"{word}, {row.features}" if row.pass_name == "text" else word


def long_table(timed: Sequence[list[Row]], path: Path) -> list[str]:
    """Return the lines of the table; none where there is no such case.

    timed: the cases of which something was timed. path: of the CSV.
    """
    found = [case for case in timed if case[0].kernel == KERNEL]
    if not found:
        return []
    return [
        f"Transformer-XL of {found[0][0].layers} layers with random weights, at the sizes of "
        f"transfo-xl-wt103, on {found[0][0].device}; {_versions(found)}; milliseconds, of a text "
        "those of one token with the reading of the prompt in it, tokens per second without those "
        f"of the memory, peak memory in MiB (`benchmarks/results/{path.name}`). Evaluation reads "
        "the next segment and gives its losses, with the memory of the last; training has dropout "
        "and no optimizer; a text is token for token the same.",
        "",
        "| what | batch x tokens + memory | dtype | HF | ours | over HF | tokens/s (HF's) "
        "| memory (HF's) | error (HF's) |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
        *(_line({row.provider: row for row in case}) for case in found),
    ]


def short_table(files: Sequence[Path]) -> str:
    """Return the table for the README: a column for each case of one sequence in fp32.

    Raises ValueError where no CSV has one that both libraries were timed on.
    """
    for path in files:
        ours = [row for row in read_results(path) if _is_short(row)]
        if ours:
            break
    else:
        raise ValueError("no results CSV holds timed rows of Transformer-XL")
    groups = cases(row for row in read_results(path) if row.kernel == KERNEL and row.p50_us)
    lines = [
        f"Times as fast as Hugging Face's, on {ours[0].device} ({ours[0].layers} layers at the "
        f"sizes of transfo-xl-wt103, random weights, fp32; {_versions(groups)}; `python -m "
        f"benchmarks transfo_xl`, `benchmarks/results/{path.name}`):",
        "",
        joined([f"{what(row)}, {row.length} + {row.memory_length}" for row in ours]),
        f"|{'--:|' * len(ours)}",
        joined([speedup_text(row.speedup_over_hf_eager) for row in ours]),
    ]
    return "\n".join(lines)


def _is_short(row: Row) -> bool:
    one = (row.kernel, row.provider, row.dtype, row.batch) == (KERNEL, "ours", "fp32", 1)
    return one and row.speedup_over_hf_eager is not None


def _versions(found: Sequence[Sequence[Row]]) -> str:
    """Both environments: their libraries differ."""
    rows = {row.provider: row for case in found for row in case if row.p50_us}
    told = []
    if hf := rows.get("hf_eager"):
        told.append(f"HF is transformers {hf.transformers} with torch {hf.torch}")
    if ours := rows.get("ours"):
        told.append(f"ours with transformers {ours.transformers} and torch {ours.torch}")
    return ", ".join(told)


def _line(by_name: dict[str, Row]) -> str:
    any_row = next(iter(by_name.values()))
    ours, eager = by_name.get("ours"), by_name.get("hf_eager")
    return joined([
        what(any_row),
        shape_label(any_row),
        any_row.dtype,
        time_cell(eager),
        time_cell(ours),
        speedup_text(ours.speedup_over_hf_eager) if ours else "",
        f"{tokens_text(ours) or '-'} ({tokens_text(eager) or '-'})",
        f"{memory_cell(ours)} ({memory_cell(eager)})",
        error_cell(ours, eager),
    ])  # fmt: skip
