"""The README's picture: speed-up by length, and memory, drawn from a results CSV.

python -m benchmarks readme_picture           # rewrites docs/speed.png from benchmarks/results/
python -m benchmarks readme_picture --check   # exits 1 when the picture shows other numbers

The drawn numbers stand in the file itself (`--check` reads them), since the pixels of the same plot
differ from one matplotlib to the next.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xlnet_fast.files import write_whole

from ..harness.record import Row, read_results
from .plot import COLOURS

RESULTS = Path(__file__).resolve().parents[1] / "results"
PICTURE = RESULTS.parents[1] / "docs" / "speed.png"
KEYWORD = "Description"  # of the PNG's text that holds the numbers
PROVIDERS = {"hf_compile": "Hugging Face, compiled", "ours": "xlnet_fast"}
DTYPES = ("fp32", "bf16")
LABELLED = {4096, 8192}


def shown(rows: Sequence[Row]) -> dict[str, Any]:
    """Return what the picture shows: speed-ups of the model, peak memory of attention, a caption.

    Speed-ups are {dtype: {provider: {"batch x length": times}}} over Hugging Face eager in
    inference, memory is {dtype: {provider: {length: MiB}}} of one sequence.

    Raises ValueError where the rows have neither.
    """
    timed = [row for row in rows if row.status == "ok" and row.pass_name == "forward"]
    models = [row for row in timed if row.kernel == "model"]
    attention = [r for r in timed if r.kernel == "rel_attention" and r.batch == 1]
    if not models or not attention:
        raise ValueError("the results hold no timed inference of the model and of attention alone")
    speed = {
        dtype: {
            provider: {
                f"{row.batch}x{row.length}": row.speedup_over_hf_eager
                for row in sorted(models, key=lambda row: (row.length, row.batch))
                if row.provider == provider and row.dtype == dtype
            }
            for provider in PROVIDERS
        }
        for dtype in DTYPES
    }
    memory = {
        dtype: {
            provider: {
                str(row.length): row.peak_memory_mib
                for row in sorted(attention, key=lambda row: row.length)
                if row.provider == provider and row.dtype == dtype and row.peak_memory_mib
            }
            for provider in ("hf_eager", "ours")
        }
        for dtype in DTYPES
    }
    row = models[0]
    caption = (
        f"{row.device}; torch {row.torch}, transformers {row.transformers}; heads of xlnet-base, "
        f"padding and segments; model: {row.layers} layers. No GPU."
    )
    return {"speed": speed, "memory": memory, "caption": caption}


def draw(numbers: dict[str, Any], path: Path) -> None:
    """Draw the picture of `shown`'s numbers and leave them in the file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.3), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    _draw_speed(left, numbers["speed"])
    _draw_memory(right, numbers["memory"])
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    figure.supxlabel(numbers["caption"], fontsize=8.5, color="#444444", x=0.01, ha="left")
    text = {KEYWORD: json.dumps(numbers, sort_keys=True), "Software": None}
    temporary = path.with_suffix(".part.png")
    canvas.print_png(temporary, metadata=text)
    write_whole(path, temporary.read_bytes())
    temporary.unlink()


def _draw_speed(axes: Any, speed: dict[str, Any]) -> None:
    """Bars from zero, a group for each batch and length; pale ones are bf16."""
    groups = list(speed[DTYPES[0]]["ours"])
    series = [(provider, dtype) for provider in PROVIDERS for dtype in DTYPES]
    width = 0.84 / len(series)
    for i, (provider, dtype) in enumerate(series):
        heights = [speed[dtype][provider].get(group, 0.0) for group in groups]
        places = [g + (i - (len(series) - 1) / 2) * width for g in range(len(groups))]
        bars = axes.bar(
            places, heights, width * 0.92, color=COLOURS[provider],
            alpha=1.0 if dtype == "fp32" else 0.5, label=f"{PROVIDERS[provider]}, {dtype}",
        )  # fmt: skip
        axes.bar_label(bars, [f"{h:.1f}" for h in heights], fontsize=8, padding=2)
    axes.axhline(1.0, color="#555555", linewidth=1.1, linestyle="--")
    axes.set_xticks(range(len(groups)), groups)
    axes.set_xlabel("batch x length")
    axes.set_ylabel("times as fast as Hugging Face eager (dashed: 1)")
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    axes.legend(fontsize=9, frameon=False, loc="upper left")
    axes.set_title("Whole model, inference", loc="left", fontsize=12, fontweight="bold")


def _draw_memory(axes: Any, memory: dict[str, Any]) -> None:
    """Peak MiB against length, both axes logarithmic: a straight line is a power."""
    names = {"hf_eager": "Hugging Face", "ours": "xlnet_fast"}
    styles = {"fp32": "-", "bf16": "--"}
    lengths = sorted({int(n) for series in memory.values() for s in series.values() for n in s})
    for dtype, style in styles.items():
        for provider, name in names.items():
            points = {int(length): mib for length, mib in memory[dtype][provider].items()}
            axes.plot(
                list(points), list(points.values()), style, marker="o", markersize=4,
                color=COLOURS[provider], label=f"{name}, {dtype}",
            )  # fmt: skip
            for length in LABELLED & points.keys() if dtype == "fp32" else ():
                axes.annotate(
                    f"{points[length]:,.0f} MiB", (length, points[length]), fontsize=9,
                    xytext=(0, 6), textcoords="offset points", ha="right", color=COLOURS[provider],
                )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.set_ylim(top=axes.get_ylim()[1] * 2)
    axes.set_xlabel("length, batch 1")
    axes.set_ylabel("peak memory of one layer's attention, MiB")
    axes.grid(linewidth=0.4, alpha=0.5)
    axes.legend(fontsize=9, frameon=False, loc="upper left")
    axes.set_title("Attention, inference", loc="left", fontsize=12, fontweight="bold")


def numbers_in(path: Path) -> dict[str, Any]:
    """Return the numbers that a picture made here shows; ValueError if it was not made here."""
    data = path.read_bytes()
    place = 8  # after the signature; a chunk is length, kind, content and four bytes of checksum
    while place + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        content = data[place + 8 : place + 8 + length]
        if kind == b"tEXt" and content.startswith(KEYWORD.encode() + b"\0"):
            found: dict[str, Any] = json.loads(content.split(b"\0", 1)[1])
            return found
        place += 12 + length
    raise ValueError(f"{path} does not hold the numbers that it shows")


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the picture, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="only say whether it matches")
    parser.add_argument("--out", type=Path, default=PICTURE)
    parser.add_argument("csv", type=Path, nargs="?", help="default: the one in benchmarks/results")
    options = parser.parse_args(arguments)
    try:
        files = [options.csv] if options.csv else sorted(RESULTS.glob("cpu-*.csv"))
        numbers = shown(read_results(files[0])) if files else {}
        if not options.check:
            draw(numbers, options.out)
            print(f"drew {options.out}")
            return 0
        if numbers_in(options.out) == numbers:
            print("the picture shows the results")
            return 0
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("the picture is stale: run python -m benchmarks readme_picture")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
