"""The plot of a token's time by context: one picture for each model and batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..harness.record import Row

STYLES = {"ours": "-", "hf_eager": "-", "ours_no_memory": ":", "hf_no_memory": ":"}


def groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the timed steps of each model and batch, by the stem of their picture's name."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.pass_name == "step" and row.status == "ok" and row.dtype == "fp32":
            stem = stem_of(row.layers, row.heads * row.head_dim, row.batch)
            found.setdefault(stem, []).append(row)
    return found


def stem_of(layers: int, width: int, batch: int) -> str:
    """Return the name of a picture, without its suffix."""
    return f"generate_{layers}x{width}_batch{batch}"


def lines(rows: Sequence[Row]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Return the points (context, ms) of each provider and text, by its features, in order."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in rows:
        texts = found.setdefault(row.provider, {})
        texts.setdefault(row.features, []).append((row.length, (row.p50_us or 0.0) / 1e3))
    return {
        provider: {text: sorted(points) for text, points in texts.items()}
        for provider, texts in found.items()
    }


def draw(axes: Any, rows: Sequence[Row], colours: dict[str, str], label: Any) -> None:
    """Draw the lines of one picture: a colour for each code, dotted without memory."""
    for provider, texts in lines(rows).items():
        for i, points in enumerate(texts.values()):
            axes.plot(
                *zip(*points, strict=True), STYLES.get(provider, "--"), marker="o", markersize=3,
                color=colours.get(provider, "#999999"),
                label=label(provider) if i == 0 else None,
            )  # fmt: skip
    axes.set_yscale("log")
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("tokens of the text so far")
    axes.set_ylabel("milliseconds per token")
    axes.grid(which="both", linewidth=0.4, alpha=0.5)
    axes.legend(fontsize=8, frameon=False)
