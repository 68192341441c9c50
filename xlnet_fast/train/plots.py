"""Plots of a training: its losses, and what a classifier confuses. PNG, without a display."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from xlnet_fast.errors import ArgumentError

_TRAINING, _EVALUATION, _SMOOTHED = "#9fbfdf", "#d1495b", "#1f5a94"
_SMOOTHED_FROM = 30  # points; fewer are readable as they are
_LONGEST_NAME = 24
_LARGEST_LOSS = 690.0  # whose exponential is a number; a scale beyond says nothing
_WRITTEN_UP_TO = 30  # classes; the cells of a larger matrix are too small for numbers
Points = tuple[list[int], list[float]]


def plot_losses(history: list[dict[str, Any]], path: Path, title: str) -> None:
    """Plot training and evaluation loss over steps; perplexity too, where it was logged.

    Args:
        history: ``trainer.state.log_history``; entries with ``loss``, ``eval_loss`` or
            ``eval_perplexity`` count. Values that are not finite are left out.
        path: the PNG to write; an older one is replaced when the new one is complete.
        title: above the plot.

    Raises:
        ArgumentError: the history has no finite loss.
    """
    training, evaluation = _points(history, "loss"), _points(history, "eval_loss")
    perplexity = _points(history, "eval_perplexity")
    if not training[0] and not evaluation[0]:
        raise ArgumentError("the history has no finite loss or eval_loss, so there is no plot")
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw_training(axes, training)
    if evaluation[0]:
        steps, values = evaluation
        axes.plot(steps, values, "o-", color=_EVALUATION, markersize=4, label="evaluation")
    _scale(axes, training[1] + evaluation[1])
    axes.set(title=title, xlabel="step", ylabel="loss")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if perplexity[0]:
        _annotate_perplexity(axes, perplexity, evaluation)
    axes.legend(frameon=False)
    _write(figure, path)


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
    _name_cells(axes, [_cut(str(label)) for label in labels])
    if size <= _WRITTEN_UP_TO:
        _write_cells(axes, counts, shares)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=20 + size, pad=0.03)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    bar.set_label("share of the true label")
    bar.outline.set_visible(False)
    _write(figure, path)


def _points(history: list[dict[str, Any]], key: str) -> Points:
    """Steps and values, by step; of a step that was logged twice (a resume), the later one."""
    found = {
        int(entry["step"]): float(entry[key])
        for entry in history
        if key in entry and "step" in entry and math.isfinite(entry[key])
    }
    steps = sorted(found)
    return steps, [found[step] for step in steps]


def _draw_training(axes: Any, training: Points) -> None:
    """The logged points; where they are many, pale below their running mean."""
    steps, values = training
    if not steps:
        return
    if len(steps) < _SMOOTHED_FROM:
        axes.plot(steps, values, ".-", color=_SMOOTHED, label="training")
        return
    width = max(3, len(steps) // 25) | 1
    window = np.ones(width)  # at the ends it reaches over fewer points
    means = np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
    axes.plot(steps, values, color=_TRAINING, linewidth=0.8, label="training")
    axes.plot(steps, means, color=_SMOOTHED, label=f"training, mean of {width} logs")


def _scale(axes: Any, values: list[float]) -> None:
    """Logarithmic where the losses span more than a factor of ten, else linear."""
    low, high = min(values), max(values)
    if low > 0 and high / low > 10:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def _annotate_perplexity(axes: Any, perplexity: Points, evaluation: Points) -> None:
    """Perplexity is the exponential of the loss, so it is a second scale, not a second curve."""
    if not evaluation[0]:
        steps, values = perplexity
        axes.plot(steps, np.log(values), "o-", color=_EVALUATION, markersize=4, label="evaluation")
    if axes.get_ylim()[1] > _LARGEST_LOSS:
        return
    # Bounded, because matplotlib tries the functions on values outside the axes, too.
    to_perplexity = lambda loss: np.exp(np.minimum(loss, _LARGEST_LOSS))  # noqa: E731
    to_loss = lambda value: np.log(np.maximum(value, 1e-300))  # noqa: E731
    scale = axes.secondary_yaxis("right", functions=(to_perplexity, to_loss))
    scale.set_ylabel("perplexity")
    low, high = to_perplexity(axes.get_ylim())
    candidates = [m * 10.0**e for e in range(-2, 301) for m in (1, 2, 5)]
    ticks = [value for value in candidates if low <= value <= high]
    scale.set_yticks(ticks[:: max(1, len(ticks) // 8)])
    scale.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


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


def _cut(name: str) -> str:
    """A long name without its middle: names often differ at their ends."""
    half = _LONGEST_NAME // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[:half]}…{name[1 - half :]}"


def _write(figure: Figure, path: Path) -> None:
    """Under a temporary name first: a reader, or a kill, never meets half a picture."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(temporary, format="png")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
