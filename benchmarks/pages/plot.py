"""PNG plots of a results CSV: speed-ups, time against length, memory.

python -m benchmarks plot DIR/results.csv --out DIR
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from xlnet_fast.files import write_whole

from ..cases.shapes import BASE, BASE_4, TINY
from ..harness.record import CSV_FILE, Row, cases, read_results
from . import generate_plot, speech_plot, transfo_xl_plot
from .table import KERNEL_TITLES, PASS_TITLES, provider_label, provider_order, shape_label

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = {
    "hf_eager": "#7f7f7f",
    "hf_compile": "#E69F00",
    "hf_no_memory": "#7f7f7f",
    "sdpa_bias": "#56B4E9",
    "flex": "#CC79A7",
    "ours": "#0072B2",
    "ours_compile": "#009E73",
    "ours_no_memory": "#0072B2",
    "gemm_floor": "#000000",
    "sdpa_flash": "#000000",
}
_FLOORS = ("gemm_floor", "sdpa_flash")


FILE_NAMES = (
    {f"{speech_plot.STEM}.png", f"{transfo_xl_plot.STEM}.png"}
    | frozenset(
        f"{stem}_{name}.png"
        for stem in (
            "model",
            "model_training_step",
            "rel_attention",
            "rel_attention_backward",
            "rel_attention_forward_backward",
        )
        for name in ("speedup", "time", "memory")
    )
    | {
        f"{generate_plot.stem_of(size.n_layer, size.d_model, batch)}.png"
        for size in (TINY, BASE_4, BASE)
        for batch in (1, 8)
    }
)


def draw_all(rows: Sequence[Row], out: Path) -> list[Path]:
    """Draw every plot the rows have data for and return the files, in reading order.

    Needs matplotlib; raises ImportError without it.
    """
    timed = [row for row in rows if row.status == "ok" and row.p50_us]
    written = []
    for kernel, pass_name in _groups(timed):
        group = _of_one_kind([r for r in timed if r.kernel == kernel and r.pass_name == pass_name])
        stem = kernel if pass_name == "forward" else f"{kernel}_{pass_name}"
        plots = [("speedup", _speedup_bars(group)), ("time", _time_lines(group))]
        plots.append(("memory", _memory_bars(group)))
        written += [
            _save(figure, out / f"{stem}_{name}.png")
            for name, figure in plots
            if figure is not None
        ]
    for stem, group in generate_plot.groups(rows).items():
        figure, axes = _new_figure(7.5, 4.6)
        generate_plot.draw(axes, group, COLOURS, provider_label)
        row = group[0]
        told = replace(row, features=f"width {row.heads * row.head_dim}")  # not one text's prompt
        what = f"batch {row.batch}, by the tokens so far"
        written.append(_save(_finish(figure, axes, [told], what), out / f"{stem}.png"))
    speech = [row for row in timed if row.kernel == speech_plot.KERNEL]
    if speech:
        figure, axes = _new_figure(11, 4.6, panels=2)
        speech_plot.draw(axes, timed, COLOURS, provider_label)
        told = replace(speech[0], features="random weights")  # not one encoder's name
        what = "speed-up by length, and memory of attention"
        written.append(
            _save(_finish(figure, axes[0], [told], what), out / f"{speech_plot.STEM}.png")
        )
    texts = [row for row in timed if row.kernel == transfo_xl_plot.KERNEL]
    if texts:
        figure, axes = _new_figure(11, 4.6, panels=2)
        transfo_xl_plot.draw(axes, texts, COLOURS, provider_label)
        # Ours, with its versions; the axis tells Hugging Face's.
        told = replace(
            max(texts, key=lambda row: row.provider == "ours"), features="random weights"
        )
        title = f"{KERNEL_TITLES[told.kernel]}\nspeed-up by case, and memory"
        figure = _finish(figure, axes[0], [told], title=title)
        written.append(_save(figure, out / f"{transfo_xl_plot.STEM}.png"))
    return written


def _of_one_kind(rows: list[Row]) -> list[Row]:
    """Keep the features (padding, dropout, ...) measured at the most lengths: the caption's."""
    lengths: dict[str, set[int]] = {}
    for row in rows:
        lengths.setdefault(row.features, set()).add(row.length)
    most = max(lengths, key=lambda features: len(lengths[features]))
    return [row for row in rows if row.features == most]


def _groups(rows: Sequence[Row]) -> list[tuple[str, str]]:
    seen = {(row.kernel, row.pass_name) for row in rows if row.kernel in ("model", "rel_attention")}
    return sorted(seen, key=lambda key: (key[0] != "model", key[1] != "forward", key))


def _new_figure(width: float, height: float, panels: int = 1) -> tuple[Any, Any]:
    # The object interface needs no display and leaves the caller's pyplot state alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot() if panels == 1 else figure.subplots(1, panels)


def _finish(figure: Any, axes: Any, rows: Sequence[Row], what: str = "", *, title: str = "") -> Any:
    """Add caption and title: by default what the kernel and the pass are called, and `what`."""
    row = rows[0]
    title = title or f"{KERNEL_TITLES[row.kernel]}, {PASS_TITLES[row.pass_name]}\n{what}"
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
    figure.supxlabel(_caption(row), fontsize=7.5, color="#555555", x=0.01, ha="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _caption(row: Row) -> str:
    parts = [row.device]
    for name in ("xlnet_fast", "torch", "triton", "transformers"):
        if version := getattr(row, name):
            parts.append(f"{name} {version}")
    if row.commit and row.commit != "unknown":
        parts.append(f"commit {row.commit}{' (modified)' if row.dirty == 'true' else ''}")
    layers = f"{row.layers} layer{'s' if row.layers > 1 else ''}"
    return f"{parts[0]}; {layers}, {row.features}\n{', '.join(parts[1:])}"


def _bars(axes: Any, groups: list[list[Row]], providers: list[str], value: Any, text: Any) -> None:
    width = 0.8 / len(providers)
    for i_provider, provider in enumerate(providers):
        places, heights = [], []
        for i_group, group in enumerate(groups):
            height = next((value(r) for r in group if r.provider == provider), None)
            if height is not None:
                places.append(i_group + (i_provider - (len(providers) - 1) / 2) * width)
                heights.append(height)
        bars = axes.bar(
            places, heights, width * 0.92, label=provider_label(provider),
            color=COLOURS.get(provider, "#999999"),
        )  # fmt: skip
        axes.bar_label(bars, [text(h) for h in heights], fontsize=7, padding=1.5)
    labels = [f"{shape_label(g[0])}\n{g[0].dtype}" for g in groups]
    axes.set_xticks(range(len(groups)), labels, fontsize=8)
    axes.set_xlabel("batch x length, dtype")
    axes.legend(fontsize=8, frameon=False, ncols=len(providers), loc="upper left")
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)


def _shown(rows: Sequence[Row], *, floors: bool) -> list[str]:
    known = [row.provider for row in rows if row.provider in COLOURS]
    return [p for p in provider_order(known) if floors or p not in _FLOORS]


def _speedup_bars(rows: Sequence[Row]) -> Any:
    providers = [p for p in _shown(rows, floors=False) if p != "hf_eager"]
    groups = [g for g in cases(rows) if any(r.provider == "hf_eager" for r in g)]
    if not providers or not groups:
        return None
    figure, axes = _new_figure(_width(groups, providers), 4.2)
    _bars(axes, groups, providers, lambda r: r.speedup_over_hf_eager, lambda h: f"{h:.2f}")
    axes.axhline(1.0, color="#7f7f7f", linewidth=1.2, linestyle="--")
    axes.set_ylabel("times as fast as HF eager")
    axes.margins(y=0.22)
    return _finish(figure, axes, rows, "speed-up over Hugging Face eager (dashed: 1)")


def _memory_bars(rows: Sequence[Row]) -> Any:
    with_memory = [row for row in rows if row.peak_memory_mib is not None]
    providers = _shown(with_memory, floors=False)
    if not providers:
        return None
    groups = cases(with_memory)
    figure, axes = _new_figure(_width(groups, providers), 4.2)
    _bars(axes, groups, providers, lambda r: r.peak_memory_mib, lambda h: f"{h:,.0f}")
    axes.set_ylabel("peak memory of one run, MiB")
    axes.margins(y=0.22)
    return _finish(figure, axes, rows, "peak memory above the inputs")


def _width(groups: Sequence[Any], providers: Sequence[Any]) -> float:
    return max(8.0, 2.0 + 0.38 * len(groups) * len(providers))


def _time_lines(rows: Sequence[Row]) -> Any:
    """Time per token against length, one line per provider and dtype; None with a single length.

    Per token, because the batches of different lengths differ in size.
    """
    if len({row.length for row in rows}) < 2:
        return None
    figure, axes = _new_figure(7.5, 4.6)
    styles = {"fp32": "-", "bf16": "--", "fp16": ":"}
    # Where a length was run at several batch sizes, the largest batch stands for it.
    batch_of = {
        length: max(r.batch for r in rows if r.length == length)
        for length in {r.length for r in rows}
    }
    for provider in _shown(rows, floors=True):
        for dtype in styles:
            points = sorted(
                (r.length, (r.p50_us or 0.0) / (r.batch * r.length))
                for r in rows
                if r.provider == provider
                and r.dtype == dtype
                and r.memory_length == 0
                and r.batch == batch_of[r.length]
            )
            if len(points) > 1:
                axes.plot(
                    *zip(*points, strict=True), styles[dtype], marker="o", markersize=4,
                    color=COLOURS[provider], linewidth=1.0 if provider in _FLOORS else 1.6,
                    label=f"{provider_label(provider)}, {dtype}",
                )  # fmt: skip
    if not axes.lines:
        return None
    lengths = sorted(batch_of)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [f"{length}\n(batch {batch_of[length]})" for length in lengths])
    axes.set_xlabel("length")
    axes.set_ylabel("microseconds per token")
    axes.grid(which="both", linewidth=0.4, alpha=0.5)
    axes.legend(fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _finish(figure, axes, rows, "time per token")


def _save(figure: Any, path: Path) -> Path:
    buffer = io.BytesIO()
    # No date and no version in the file: the same results give the same bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_whole(path, buffer.getvalue())
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the plots of a CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("csv", type=Path, help=f"a {CSV_FILE} written by a benchmark run")
    parser.add_argument("--out", type=Path, help="folder for the PNGs; default: beside the CSV")
    options = parser.parse_args(arguments)
    out = options.out or options.csv.parent
    out.mkdir(parents=True, exist_ok=True)
    for path in draw_all(read_results(options.csv), out):
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
