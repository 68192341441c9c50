"""The plot of what a classifier confuses: what is drawn, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.finetune.confusion import plot_confusion

pytestmark = pytest.mark.filterwarnings("error")


def test_confusion(tmp_path: Path, figure: list[Figure]) -> None:
    """Counts and shares of the rows; nothing in empty cells; a label without examples."""
    matrix = [[3, 1, 0], [0, 0, 0], [1, 0, 999]]
    plot_confusion(matrix, ["a", "b", "c"], tmp_path / "confusion.png", "Test")
    axes = figure[0].axes[0]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "3\n75%", (1, 0): "1\n25%", (0, 2): "1\n<1%", (2, 2): "999\n100%"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("size", [1, 2, 30])
def test_text_stays_inside_its_cell(tmp_path: Path, figure: list[Figure], size: int) -> None:
    """Four digits in the largest matrix that is written out, and no overlap of the names."""
    names = [f"a label whose name is long {i}" for i in range(size)]
    plot_confusion(np.full((size, size), 8888), names, tmp_path / "confusion.png", "Test")
    figure[0].draw_without_rendering()
    axes, renderer = figure[0].axes[0], figure[0].canvas.get_renderer()
    cell = axes.transData.transform([(0, 0), (1, 1)])
    width, height = np.abs(cell[1] - cell[0])
    assert len(axes.texts) == size**2
    for text in axes.texts[:: size + 1]:
        box = text.get_window_extent(renderer)
        assert box.width < width
        assert box.height < height
    for label in axes.get_xticklabels():
        assert label.get_window_extent(renderer).y0 >= 0
        assert len(label.get_text()) <= 24
        assert label.get_text().endswith(label.get_text()[-1])
    assert len({label.get_text() for label in axes.get_xticklabels()}) == size


def test_a_large_confusion_matrix_has_colours_only(tmp_path: Path, figure: list[Figure]) -> None:
    plot_confusion(np.eye(40, dtype=int), [str(i) for i in range(40)], tmp_path / "c.png", "")
    assert len(figure[0].axes[0].texts) == 0


@pytest.mark.parametrize(
    ("matrix", "labels", "message"),
    [
        ([[1, 2]], ["a", "b"], r"has shape \(1, 2\), expected \(2, 2\)"),
        ([[1]], ["a", "b"], r"has shape \(1, 1\), expected \(2, 2\)"),
        ([[1, -2], [0, 1]], ["a", "b"], "holds -2, expected counts"),
        ([], [], r"has shape \(0,\)"),
    ],
)
def test_wrong_matrices(tmp_path: Path, matrix: Any, labels: list[str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        plot_confusion(matrix, labels, tmp_path / "confusion.png", "")
