"""The picture of speech encoders: speed-up by seconds of audio, and the memory of attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..harness.record import Row
from .speech_table import ATTENTION, KERNEL, name_and_seconds

STEM = "speech"
_STYLES = {"fp32": "-", "bf16": "--", "fp16": ":"}
# Okabe and Ito's, as in the other plots, and two greys.
_COLOURS = (
    "#0072B2", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#56B4E9", "#7f7f7f", "#000000",
)  # fmt: skip


def speedups(rows: Sequence[Row]) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Return the points (seconds, times as fast) of each encoder and dtype, of one sequence."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        ratio = row.speedup_over_hf_eager
        if (row.kernel, row.provider, row.batch) == (KERNEL, "ours", 1) and ratio:
            name, seconds = name_and_seconds(row)
            found.setdefault((name, row.dtype), []).append((_number(seconds), ratio))
    return {key: sorted(points) for key, points in found.items()}


def memory(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return {"encoder, seconds": {provider: MiB}} of one layer's attention in fp32."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if (row.kernel, row.dtype) == (ATTENTION, "fp32") and row.peak_memory_mib is not None:
            found.setdefault(row.features, {})[row.provider] = row.peak_memory_mib
    return {label: by_name for label, by_name in found.items() if len(by_name) > 1}


def draw(axes: Sequence[Any], rows: Sequence[Row], colours: dict[str, str], label: Any) -> None:
    """Draw both panels; a colour for each encoder, dashed in bf16, and a bar for each provider."""
    _draw_speedups(axes[0], speedups(rows))
    _draw_memory(axes[1], memory(rows), colours, label)


def _draw_speedups(axes: Any, lines: dict[tuple[str, str], list[tuple[float, float]]]) -> None:
    names = list(dict.fromkeys(name for name, _ in lines))
    for (name, dtype), points in lines.items():
        axes.plot(
            *zip(*points, strict=True), _STYLES[dtype], marker="o", markersize=4,
            color=_COLOURS[names.index(name) % len(_COLOURS)], label=f"{name}, {dtype}",
        )  # fmt: skip
    if lines:
        # One entry an encoder, above the lines, which fill the rest; dashes are told by the axis.
        shown = {text.partition(",")[0]: line for line, text in zip(*_handles(axes), strict=True)}
        axes.legend(
            shown.values(), shown, fontsize=6.5, frameon=False, ncols=3, loc="upper left",
        )  # fmt: skip
        axes.margins(y=0.22)
    axes.axhline(1.0, color="#7f7f7f", linewidth=1.1, linestyle=":")
    axes.set_xscale("log")
    ticks = sorted({seconds for points in lines.values() for seconds, _ in points})
    axes.set_xticks(ticks, [f"{seconds:g}" for seconds in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("seconds of audio, batch 1")
    axes.set_ylabel("times as fast as Hugging Face (dashed: bf16)")
    axes.grid(linewidth=0.4, alpha=0.5)


def _handles(axes: Any) -> tuple[list[Any], list[str]]:
    lines, texts = axes.get_legend_handles_labels()
    return lines[::-1], texts[::-1]  # so that of two dtypes the first, the solid one, is kept


def _draw_memory(
    axes: Any, found: dict[str, dict[str, float]], colours: dict[str, str], label: Any
) -> None:
    for place, provider in enumerate(("hf_eager", "ours")):
        heights = [by_name.get(provider, 0.0) for by_name in found.values()]
        spots = [i + 0.4 * place - 0.2 for i in range(len(found))]
        bars = axes.barh(spots, heights, 0.36, color=colours[provider], label=label(provider))
        axes.bar_label(bars, [f"{height:,.0f}" for height in heights], fontsize=7, padding=2)
    axes.set_yticks(range(len(found)), list(found), fontsize=7)
    axes.set_xlabel("peak memory of one layer's attention in fp32, MiB")
    axes.invert_yaxis()
    axes.margins(x=0.15)
    if found:
        axes.legend(fontsize=7, frameon=False)


def _number(seconds: str) -> float:
    return float(seconds.removesuffix(" s"))
