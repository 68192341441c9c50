"""The picture of Transformer-XL: speed-up of each case, and its memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..harness.record import Row, cases
from .table import shape_label
from .transfo_xl_table import KERNEL, what

STEM = "transfo_xl"


def speedups(rows: Sequence[Row]) -> dict[str, float]:
    """Return how many times as fast ours is in each case."""
    return {
        label_of(row): row.speedup_over_hf_eager
        for row in rows
        if (row.kernel, row.provider) == (KERNEL, "ours") and row.speedup_over_hf_eager is not None
    }


def memory(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return {case: {provider: MiB}} where both were measured."""
    found = {}
    for case in cases(row for row in rows if row.kernel == KERNEL):
        peaks = {r.provider: r.peak_memory_mib for r in case if r.peak_memory_mib is not None}
        if len(peaks) > 1:
            found[label_of(case[0])] = peaks
    return found


def label_of(row: Row) -> str:
    """Return what a bar is of."""
    return f"{what(row)}\n{shape_label(row)} {row.dtype}"


def draw(axes: Sequence[Any], rows: Sequence[Row], colours: dict[str, str], label: Any) -> None:
    """Draw both panels of bars."""
    ratios, peaks = speedups(rows), memory(rows)
    bars = axes[0].barh(range(len(ratios)), list(ratios.values()), 0.6, color=colours["ours"])
    axes[0].bar_label(bars, [f"{ratio:.2f}" for ratio in ratios.values()], fontsize=7, padding=2)
    axes[0].axvline(1.0, color="#7f7f7f", linewidth=1.1, linestyle=":")
    versions = {row.transformers for row in rows if row.provider == "hf_eager"}
    axes[0].set_xlabel(f"times as fast as transformers {', '.join(sorted(versions))} (dotted: 1)")
    for place, provider in enumerate(("hf_eager", "ours")):
        heights = [by_name[provider] for by_name in peaks.values()]
        spots = [i + 0.4 * place - 0.2 for i in range(len(peaks))]
        bars = axes[1].barh(spots, heights, 0.36, color=colours[provider], label=label(provider))
        axes[1].bar_label(bars, [f"{height:,.0f}" for height in heights], fontsize=7, padding=2)
    axes[1].set_xlabel("peak memory, MiB")
    for panel, labels in zip(axes, (list(ratios), list(peaks)), strict=True):
        panel.set_yticks(range(len(labels)), labels, fontsize=7)
        panel.invert_yaxis()
        panel.margins(x=0.15)
    if peaks:
        axes[1].legend(fontsize=7, frameon=False)
