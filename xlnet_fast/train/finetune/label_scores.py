"""The plot of several labels a row: how well each is found. PNG, without a display."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune.confusion import cut_name
from xlnet_fast.train.shared.plots import write_figure

_MOST = 40  # labels; more are not readable


def plot_label_scores(scores: Mapping[str, Mapping[str, float]], path: Path, title: str) -> None:
    """Plot precision, recall and F1 of each label, the most frequent first.

    Args:
        scores: label to "precision", "recall", "f1" and "support", its number of rows.
        path: the PNG to write; an older one is replaced when the new one is complete.
        title: above the plot.

    Raises:
        ArgumentError: there are no labels.
    """
    if not scores:
        raise ArgumentError("there are no labels to plot")
    shown = sorted(scores, key=lambda name: -scores[name]["support"])[:_MOST]
    figure = Figure((7.5, 1.8 + 0.32 * len(shown)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = range(len(shown))
    axes.barh(places, [scores[name]["f1"] for name in shown], color="#9fbfdf", label="F1")
    for measure, marker, color in (("precision", "|", "#d1495b"), ("recall", "x", "#1f5a94")):
        values = [scores[name][measure] for name in shown]
        axes.plot(values, places, marker, color=color, markersize=7, label=measure)
    axes.set_yticks(places, [f"{cut_name(name)} ({scores[name]['support']:.0f})" for name in shown])
    axes.invert_yaxis()
    more = f", {_MOST} of {len(scores)} labels" if len(scores) > _MOST else ""
    axes.set(title=title, xlabel=f"by the threshold{more}; rows in parentheses", xlim=(0, 1.02))
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, ncols=3, loc="outside lower center")
    write_figure(figure, path)
