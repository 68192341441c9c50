"""One self-contained HTML page: what was measured, on what, tables and plots.

python -m benchmarks report DIR          # reads results.csv, environment.json and the PNGs
"""

from __future__ import annotations

import argparse
import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xlnet_fast.files import write_whole

from ..harness.record import CSV_FILE, ENVIRONMENT_FILE, Row, read_results
from .headline import headline, what_next
from .table import Table, tables

REPORT_FILE = "index.html"
# Of a cell that keeps to one line, in characters: the features of a case may be many.
_LONGEST = 24
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 90rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1b1b; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p { max-width: 72rem; } code { background: #f5f6f8; padding: 0.1rem 0.3rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.8rem; }
th, td { padding: 0.25rem 0.45rem; border-bottom: 1px solid #ddd; text-align: right; }
th { vertical-align: bottom; background: #f5f6f8; white-space: pre-line; }
td { white-space: nowrap; } td.long { white-space: normal; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
.win { color: #066f3c; font-weight: 600; } .loss { color: #b3261e; font-weight: 600; }
.left-out { color: #777; } ul.notes { font-size: 0.85rem; color: #555; }
img { max-width: 100%; height: auto; display: block; margin: 1rem 0; }
.red { border-left: 4px solid #b3261e; padding: 0.4rem 0.8rem; background: #fdecea; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.15rem 1rem; font-size: 0.9rem; }
dt { color: #555; } dd { margin: 0; }
"""


def render(
    rows: Sequence[Row], environment: Mapping[str, Any], plots: Iterable[Path], notes: Sequence[str]
) -> str:
    """Return the page as text. notes: what the reader must know first, such as red checks."""
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>xlnet_fast benchmark</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(headline(rows, environment))}</h1>",
        _next(environment),
        *(f"<p class='red'>{html.escape(note)}</p>" for note in notes),
        *(_table(table) for table in tables(rows)),
    ]
    images = [_image(path) for path in plots]
    if images:
        parts += ["<h2>Plots</h2>", *images]
    parts += [_explanation(rows), _environment(environment), "</body></html>\n"]
    return "\n".join(parts)


def _next(environment: Mapping[str, Any]) -> str:
    items = (
        f"<li><code>{html.escape(command)}</code> {html.escape(effect)}</li>"
        for command, effect in what_next(environment)
    )
    return f"<p>Next:</p><ul>{''.join(items)}</ul>"


def _explanation(rows: Sequence[Row]) -> str:
    rounds = [row.rounds for row in rows if row.rounds]
    span = f"{min(rounds)} to {max(rounds)}" if rounds else "no"
    return (
        "<h2>How it was measured</h2><p>Times are medians in milliseconds over interleaved rounds "
        f"({span} rounds per case). A speed-up is the median of the ratios within a round; the one "
        "over compiled Hugging Face takes the faster of ours and ours compiled. Everything timed "
        "was checked first: the error against float64 is at most twice that of Hugging Face eager "
        "in the same dtype plus one rounding band. The columns <em>error</em> are the largest "
        "absolute errors against float64. <em>Matrix products only</em> and <em>content-only "
        "SDPA</em> are floors, not competitors: they leave out work.</p>"
    )


def _environment(environment: Mapping[str, Any]) -> str:
    lines = []
    for key in ("device", "cpu", "cores", "threads", "isa", "memory_gib", "gpu", "system", "python",
                "versions", "cuda", "commit", "dirty", "preset", "text", "model"):  # fmt: skip
        value = environment.get(key)
        if value in (None, "", [], {}):
            continue
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} {v}" for k, v in value.items() if v)
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        lines.append(f"<dt>{html.escape(key)}</dt><dd>{html.escape(str(value))}</dd>")
    return f"<h2>Environment</h2><dl>{''.join(lines)}</dl>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.header)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in table.rows)
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    return (
        f"<h2>{html.escape(table.title)}</h2><div class='scroll'><table><thead><tr>{head}</tr>"
        f"</thead><tbody>{body}</tbody></table></div>"
        + (f"<ul class='notes'>{notes}</ul>" if notes else "")
    )


def _cell(cell: str) -> str:
    if len(cell) > _LONGEST:
        broken = html.escape(cell).replace("+", "+\N{ZERO WIDTH SPACE}")
        return f"<td class='long'>{broken}</td>"
    return f"<td{_class(cell)}>{html.escape(cell)}</td>"


def _class(cell: str) -> str:
    if cell.endswith("slower") or cell.endswith("RED") or cell in ("red", "failed"):
        return " class='loss'"
    if cell.endswith("x") and cell[:1].isdigit():
        return " class='win'"
    return " class='left-out'" if cell in ("unavailable", "not run") else ""


def _image(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    name = html.escape(path.stem.replace("_", " "))
    return f"<img alt='{name}' src='data:image/png;base64,{data}'>"


def write_report(
    folder: Path,
    rows: Sequence[Row],
    environment: Mapping[str, Any],
    plots: Iterable[Path],
    notes: Sequence[str] = (),
) -> Path:
    """Write `index.html` into a folder and return where."""
    path = folder / REPORT_FILE
    write_whole(path, render(rows, environment, plots, notes))
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page for a folder that holds a finished run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help=f"a folder with {CSV_FILE}")
    folder = parser.parse_args(arguments).folder
    environment = json.loads((folder / ENVIRONMENT_FILE).read_text())
    plots = sorted(folder.glob("*.png"))
    print(write_report(folder, read_results(folder / CSV_FILE), environment, plots))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
