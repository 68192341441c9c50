"""The plots of a service under load: latency by requests per second, a line for each policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xlnet_fast.files import write_whole

COLOURS = {"ours": "#0072B2", "FIFO, 8 a batch": "#E69F00", "one by one": "#7f7f7f"}


def draw(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Write a PNG of two panels: latency's median and 99th percentile, and the share answered.

    Args:
        rows: of ``bench_serve``, one for each policy and rate.

    Needs matplotlib; raises ImportError without it.
    """
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((9.5, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for depth, policy in enumerate(dict.fromkeys(row["policy"] for row in rows)):
        own = sorted((row for row in rows if row["policy"] == policy), key=lambda row: row["rate"])
        rates = [row["rate"] for row in own]
        # The first, ours, lies above the others.
        style = {"color": COLOURS.get(policy, "#999999"), "zorder": 9 - depth, "markersize": 4}
        left.plot(rates, [row["p50_ms"] for row in own], "-o", label=f"{policy}, p50", **style)
        left.plot(rates, [row["p99_ms"] for row in own], ":o", label=f"{policy}, p99", **style)
        share = [100 * row["answered"] / row["requests"] for row in own]
        right.plot(rates, share, "-o", label=policy, **style)
    left.set_yscale("log")
    for set_formatter in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
        set_formatter(lambda value, _: f"{value:g}")
    left.tick_params(axis="y", which="minor", labelsize=6)
    left.set(xlabel="requests per second that come", ylabel="milliseconds to the answer")
    right.set(xlabel="requests per second that come", ylabel="answered in time, per cent")
    right.set_ylim(-3, 103)
    for axes in (left, right):
        axes.grid(which="both", linewidth=0.4, alpha=0.5)
        axes.legend(fontsize=7, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    write_whole(path, data.getvalue())
