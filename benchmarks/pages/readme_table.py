"""The tables of docs/benchmarks.md and of the README, generated from results and never typed.

python -m benchmarks readme_table           # rewrites both pages from benchmarks/results/*.csv
python -m benchmarks readme_table --check   # exits 1 when a page does not match
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from xlnet_fast.files import write_whole

from ..harness.record import Row, cases, read_results
from . import speech_table, tpu_table, transfo_xl_table
from .cells import error_cell, joined, memory_cell, time_cell
from .table import best_ours, shape_label, speedup_text, tokens_text

START = "<!-- benchmark:start -->"
END = "<!-- benchmark:end -->"
RESULTS = Path(__file__).resolve().parents[1] / "results"
ROOT = RESULTS.parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"


def markdown(files: Sequence[Path]) -> str:
    """Return the tables of the model benchmarks of each CSV, one heading per device.

    A table of pretraining steps follows where the CSV has any, one of generated texts, those of
    speech encoders and one of Transformer-XL, any of which may be all that a CSV has.

    Raises ValueError when a file has no timed rows of these, or when there is no file.
    """
    if not files:
        raise ValueError("there is no results CSV to make the tables from")
    return "\n\n".join(_file_markdown(path) for path in files)


def _file_markdown(path: Path) -> str:
    timed = [case for case in cases(read_results(path)) if any(row.p50_us for row in case)]
    groups = [case for case in timed if case[0].kernel == "model"]
    texts = [case for case in timed if (case[0].kernel, case[0].pass_name) == ("generate", "text")]
    others = [
        lines
        for lines in (
            _generation(texts, path) if texts else [],
            speech_table.long_tables(timed, path),
            transfo_xl_table.long_table(timed, path),
        )
        if lines
    ]
    if others and not groups:
        return "\n\n".join(map("\n".join, others))
    if not groups:
        raise ValueError(f"{path.name} holds no timed rows of the model benchmark")
    first = groups[0][0]
    versions = f"torch {first.torch}, transformers {first.transformers}"
    lines = [
        f"{first.device}; {versions}; {first.layers} layers, {first.features}; milliseconds, "
        f"median of interleaved rounds (`benchmarks/results/{path.name}`). Speed-ups are medians "
        "of paired rounds, so with few rounds they need not equal the ratio of the medians; over "
        "HF compiled counts whichever of ours has the lower median.",
        "",
        "| batch x length | dtype | pass | HF eager | HF compiled | ours | ours compiled "
        "| over HF eager | over HF compiled | error (HF's) |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [_line({row.provider: row for row in case}) for case in groups]
    steps = [case for case in timed if case[0].kernel == "pretraining"]
    lines += _pretraining(steps) if steps else []
    return "\n\n".join(map("\n".join, [lines, *others]))


def _pretraining(groups: Sequence[list[Row]]) -> list[str]:
    first = groups[0][0]
    return [
        "",
        "A pretraining step with two streams, memory, targets and dropout, in half precision by "
        f"autocast, on {first.device}; milliseconds, tokens per second without those of the "
        "memory, and the peak memory of a step in MiB. Tokens per second count whichever of ours "
        "has the lower median.",
        "",
        "| batch x length + memory | layers | dtype | HF eager | HF compiled | ours "
        "| ours compiled | over HF eager | over HF compiled | tokens/s (HF's) | memory (HF's) |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        *(_step_line({row.provider: row for row in case}) for case in groups),
    ]


def _generation(groups: Sequence[list[Row]], path: Path) -> list[str]:
    first = groups[0][0]
    return [
        f"Text after a prompt by `generate`, token for token the same, on {first.device}; torch "
        f"{first.torch}, transformers {first.transformers}; milliseconds per token of a text with "
        "the reading of the prompt in it, tokens per second of all texts, and the peak memory in "
        f"MiB (`benchmarks/results/{path.name}`). Without memory all is read again for each token.",
        "",
        "| batch x prompt | model, new | dtype | HF | ours | HF without memory "
        "| ours without memory | over HF | tokens/s (HF's) | memory (HF's) |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
        *(_text_line({row.provider: row for row in case}) for case in groups),
    ]


def _text_line(by_name: dict[str, Row]) -> str:
    any_row = next(iter(by_name.values()))
    names = ("hf_eager", "ours", "hf_no_memory", "ours_no_memory")
    ours, eager = by_name.get("ours"), by_name.get("hf_eager")
    return joined([
        f"{any_row.batch}x{any_row.length}",
        any_row.features,
        any_row.dtype,
        *(time_cell(by_name.get(name)) for name in names),
        speedup_text(ours.speedup_over_hf_eager) if ours else "",
        f"{tokens_text(ours) or '-'} ({tokens_text(eager) or '-'})",
        f"{memory_cell(ours)} ({memory_cell(eager)})",
    ])  # fmt: skip


def _line(by_name: dict[str, Row]) -> str:
    any_row = next(iter(by_name.values()))
    cells = [
        f"{any_row.batch}x{any_row.length}",
        any_row.dtype,
        any_row.pass_name.replace("_", " ").replace("forward", "inference"),
        *_times_and_speedups(by_name),
        error_cell(by_name.get("ours"), by_name.get("hf_eager")),
    ]
    return joined(cells)


def _step_line(by_name: dict[str, Row]) -> str:
    any_row = next(iter(by_name.values()))
    ours, eager = by_name.get("ours"), by_name.get("hf_eager")
    cells = [
        shape_label(any_row),
        str(any_row.layers),
        any_row.dtype,
        *_times_and_speedups(by_name),
        f"{tokens_text(best_ours(by_name)) or '-'} ({tokens_text(eager) or '-'})",
        f"{memory_cell(ours)} ({memory_cell(eager)})",
    ]
    return joined(cells)


def _times_and_speedups(by_name: dict[str, Row]) -> list[str]:
    ours, best = by_name.get("ours"), best_ours(by_name)
    return [
        *(
            time_cell(by_name.get(name))
            for name in ("hf_eager", "hf_compile", "ours", "ours_compile")
        ),
        speedup_text(ours.speedup_over_hf_eager) if ours else "",
        speedup_text(best.speedup_over_hf_compile) if best else "",
    ]


def replace_between_markers(
    page: str, table: str, start: str = START, end: str = END, around: str = "\n"
) -> str:
    """Return a page with the text between the markers replaced, with `around` on both sides.

    Raises ValueError unless both markers stand in it exactly once and in order.
    """
    if page.count(start) != 1 or page.count(end) != 1 or page.index(start) > page.index(end):
        raise ValueError(f"the page must hold {start} and, after it, {end}, each once")
    before, rest = page.split(start)
    after = rest.split(end)[1]
    return f"{before}{start}{around}{table}{around}{end}{after}"


def pages(files: Sequence[Path]) -> dict[Path, str]:
    """Return each page as it should be: that of the docs, and the README with its short tables.

    That of Transformer-XL stands where the README has the markers for it, and so do the figures of
    the TPU compiler in both.
    """
    readme_page = ROOT / "README.md"
    tables = {PAGE: markdown(files), readme_page: speech_table.short_table(files)}
    found = {
        page: replace_between_markers(page.read_text(encoding="utf-8"), table)
        for page, table in tables.items()
    }
    of_transfo_xl = (transfo_xl_table.START, transfo_xl_table.END)
    of_tpu = (tpu_table.START, tpu_table.END)
    figures = RESULTS / tpu_table.NAME
    for page, marks, around, table in (
        (readme_page, of_transfo_xl, "\n", lambda: transfo_xl_table.short_table(files)),
        (readme_page, of_tpu, "", lambda: tpu_table.short_line(figures)),
        (PAGE, of_tpu, "\n", lambda: tpu_table.long_table(figures)),
    ):
        if marks[0] in found[page]:
            found[page] = replace_between_markers(found[page], table(), *marks, around=around)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the pages' tables, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="only say whether they match")
    parser.add_argument("--page", type=Path, help="one page, with the tables of the docs")
    parser.add_argument("csv", type=Path, nargs="*", help="default: benchmarks/results/*.csv")
    options = parser.parse_args(arguments)
    files = options.csv or sorted(RESULTS.glob("*.csv"))
    try:
        if options.page is None:
            wanted = pages(files)
        else:
            old = options.page.read_text(encoding="utf-8")
            wanted = {options.page: replace_between_markers(old, markdown(files))}
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    stale = [page for page, new in wanted.items() if page.read_text(encoding="utf-8") != new]
    if not stale:
        print("the benchmark tables match the results")
        return 0
    if options.check:
        print("the benchmark tables are stale: run python -m benchmarks readme_table")
        return 1
    for page in stale:
        write_whole(page, wanted[page])
        print(f"rewrote the benchmark tables of {page.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
