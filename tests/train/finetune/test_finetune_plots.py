"""The plots of numbers and of several labels: what is drawn, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune.label_scores import plot_label_scores
from xlnet_fast.train.finetune.scatter import plot_scatter

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("undrawn")]


def scores(count):
    return {
        f"label {i}": {"precision": 0.5, "recall": 0.25, "f1": 1 / (i + 1), "support": 100 - i}
        for i in reversed(range(count))
    }


def test_numbers_over_numbers(tmp_path, figure):
    """A prediction that is no number leaves no dot."""
    true, predicted = np.array([1.0, 2.0, 4.0]), np.array([1.5, np.nan, 3.0])
    plot_scatter(true, predicted, tmp_path / "a.png", "Test")
    axes = figure[0].axes[0]
    assert axes.collections[0].get_offsets().tolist() == [[1.0, 1.5], [4.0, 3.0]]
    assert list(axes.lines[0].get_xdata()) == list(axes.lines[0].get_ydata()) == [1.0, 4.0]


@pytest.mark.parametrize("predicted", [[], [1.0, 2.0], [[1.0]]], ids=str)
def test_numbers_that_do_not_fit(tmp_path, predicted):
    with pytest.raises(ArgumentError, match="expected one number of each for one or more rows"):
        plot_scatter(np.ones(len(predicted) % 2), np.array(predicted), tmp_path / "a.png", "")


@pytest.mark.parametrize(("count", "shown"), [(1, 1), (3, 3), (50, 40)])
def test_labels_by_their_number_of_rows(tmp_path, figure, count, shown):
    plot_label_scores(scores(count), tmp_path / "a.png", "Test")
    figure[0].draw_without_rendering()
    axes = figure[0].axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [f"label {i} ({100 - i})" for i in range(shown)]
    assert [bar.get_width() for bar in axes.patches] == [1 / (i + 1) for i in range(shown)]
    assert ("40 of 50 labels" in axes.get_xlabel()) == (count == 50)
    # The legend stands below the axis' name.
    renderer = figure[0].canvas.get_renderer()
    legend = figure[0].legends[0].get_window_extent(renderer)
    assert legend.y1 <= axes.xaxis.label.get_window_extent(renderer).y0 + 1


def test_no_labels(tmp_path):
    with pytest.raises(ArgumentError, match="no labels"):
        plot_label_scores({}, tmp_path / "a.png", "")
