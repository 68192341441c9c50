"""The plot of what a classifier confuses. PNG, without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.shared.plots import write_figure

_LONGEST_NAME = 24
_WRITTEN_UP_TO = 30  # classes; the cells of a larger matrix are too small for numbers


def plot_confusion(
    matrix: Sequence[Sequence[int]] | np.ndarray[Any, Any],
    labels: Sequence[str],
    path: Path,
    title: str,
) -> None:
    """Plot a confusion matrix: counts, and shares of each row (of each true label).

    Args:
        matrix: counts, one row for each true label, one column for each predicted one.
        labels: their names, in the same order; long ones are cut.
        path: the PNG to write; an older one is replaced when the new one is complete.
        title: above the plot.

    Raises:
        ArgumentError: the matrix is not square, has negative counts, or not one row a label.
    """
    counts = np.asarray(matrix)
    size = len(labels)
    if counts.shape != (size, size) or size == 0:
        raise ArgumentError(
            f"the confusion matrix has shape {counts.shape}, expected ({size}, {size}): one row "
            "and one column for each label"
        )
    if counts.min() < 0:
        raise ArgumentError(f"the confusion matrix holds {counts.min()}, expected counts")
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)  # a label that never occurs has a row of zeros
    side_inches = min(2.6 + 0.62 * max(size, 3), 22.0)
    figure = Figure((side_inches + 1.2, side_inches), dpi=150 if size <= 15 else 110)
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_title(title, fontsize=12 + size / 5)
    _name_cells(axes, [cut_name(str(label)) for label in labels])
    if size <= _WRITTEN_UP_TO:
        _write_cells(axes, counts, shares)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=20 + size, pad=0.03)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    bar.set_label("share of the true label")
    bar.outline.set_visible(False)
    write_figure(figure, path)


def _name_cells(axes: Any, names: list[str]) -> None:
    """The labels along both sides, and white lines between the cells."""
    size = len(names)
    slanted = size > 4 or max(map(len, names)) > 8
    style = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axes.set_xticks(range(size), names, **style)
    axes.set_yticks(range(size), names)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


def _write_cells(axes: Any, counts: Any, shares: Any) -> None:
    """Count and share in each cell that is not empty."""
    for row, column in np.ndindex(counts.shape):
        count, share = counts[row, column], shares[row, column]
        if count:
            axes.text(
                column,
                row,
                f"{count}\n{share:.0%}" if share >= 0.005 else f"{count}\n<1%",
                ha="center",
                va="center",
                fontsize=9 if len(counts) <= 12 else 8,
                color="white" if share > 0.55 else "#222222",
            )


def cut_name(name: str) -> str:
    """A long name without its middle: names often differ at their ends."""
    half = _LONGEST_NAME // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[:half]}…{name[1 - half :]}"
