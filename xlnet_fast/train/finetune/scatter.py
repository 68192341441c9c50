"""The plot of a regression: predicted numbers over the true ones. PNG, without a display."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.shared.plots import write_figure


def plot_scatter(true: np.ndarray, predicted: np.ndarray, path: Path, title: str) -> None:
    """Plot a dot for each row, and the line on which predictions are right.

    Args:
        true, predicted: [n].
        path: the PNG to write; an older one is replaced when the new one is complete.
        title: above the plot.

    Raises:
        ArgumentError: there are no rows, or not as many of both.
    """
    true, predicted = np.asarray(true, float), np.asarray(predicted, float)
    if true.shape != predicted.shape or true.ndim != 1 or not len(true):
        raise ArgumentError(
            f"true and predicted have shapes {true.shape} and {predicted.shape}, expected one "
            "number of each for one or more rows"
        )
    figure = Figure((6, 6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    finite = np.isfinite(predicted)  # a run that diverged leaves no dots
    shown = np.concatenate([true, predicted[finite]])
    ends = [float(shown.min()), float(shown.max())]
    axes.plot(ends, ends, color="#888888", linewidth=1, label="predicted = true")
    size, opacity = (16, 0.6) if len(true) < 2000 else (5, 0.25)
    axes.scatter(
        true[finite], predicted[finite], s=size, alpha=opacity, color="#1f5a94", linewidths=0
    )
    axes.set(title=title, xlabel="true", ylabel="predicted")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    write_figure(figure, path)
