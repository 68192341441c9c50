"""The plot of a training: its losses over steps. PNG, without a display."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from xlnet_fast.errors import ArgumentError

_TRAINING, _EVALUATION, _SMOOTHED = "#9fbfdf", "#d1495b", "#1f5a94"
_SMOOTHED_FROM = 30  # points; fewer are readable as they are
_LARGEST_LOSS = 690.0  # whose exponential is a number; a scale beyond says nothing
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
    write_figure(figure, path)


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


def write_figure(figure: Figure, path: Path) -> None:
    """Write a PNG under a temporary name first: a reader, or a kill, never meets half of one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(temporary, format="png")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
