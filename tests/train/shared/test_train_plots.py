"""The plots: what is drawn, what is refused, and that a picture is whole or not there."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image
from matplotlib.figure import Figure

from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.shared import plots
from xlnet_fast.train.shared.plots import plot_losses

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are written, so that their parts can be looked at."""
    written: list[Figure] = []
    write = plots.write_figure

    def keep(made: Figure, path: Path) -> None:
        written.append(made)
        write(made, path)

    monkeypatch.setattr(plots, "write_figure", keep)
    return written


def history(steps: int, every: int = 1, low: float = 1.0) -> list[dict[str, Any]]:
    return [
        {"step": step, "loss": low + 5 * math.exp(-step / 20)} for step in range(1, steps, every)
    ]


def lines(figure: list[Figure]) -> dict[str, Any]:
    return {line.get_label(): line for line in figure[0].axes[0].lines}


def test_losses(tmp_path: Path, figure: list[Figure]) -> None:
    """Both losses at their steps; of a step that was logged twice, the later value."""
    entries = [*history(10), {"step": 3, "loss": 2.5}, {"step": 4, "eval_loss": 3.0}, {"step": 9}]
    plot_losses(entries, tmp_path / "new" / "loss.png", "A title")
    drawn = lines(figure)
    assert drawn["training"].get_xdata().tolist() == list(range(1, 10))
    assert drawn["training"].get_ydata()[2] == 2.5
    assert drawn["evaluation"].get_ydata().tolist() == [3.0]
    axes = figure[0].axes[0]
    assert (axes.get_title(), axes.get_yscale()) == ("A title", "linear")
    picture = image.imread(tmp_path / "new" / "loss.png")
    assert min(picture.shape[:2]) > 500
    assert picture.std() > 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["loss.png"]


def test_many_logs_are_smoothed(tmp_path: Path, figure: list[Figure]) -> None:
    """The mean of a constant is that constant, at the ends too."""
    plot_losses([{"step": s, "loss": 2.0} for s in range(200)], tmp_path / "loss.png", "")
    drawn = lines(figure)
    np.testing.assert_allclose(drawn["training, mean of 9 logs"].get_ydata(), 2.0)
    assert len(drawn["training"].get_ydata()) == 200


def test_wide_losses_are_logarithmic(tmp_path: Path, figure: list[Figure]) -> None:
    plot_losses(history(200, low=0.001), tmp_path / "loss.png", "")
    assert figure[0].axes[0].get_yscale() == "log"


@pytest.mark.parametrize("with_loss", [True, False])
def test_perplexity_is_a_second_scale(
    tmp_path: Path, figure: list[Figure], with_loss: bool
) -> None:
    entries = history(20)
    for step in (5, 10):
        loss = {"eval_loss": math.log(40.0)} if with_loss else {}
        entries.append({"step": step, "eval_perplexity": 40.0, **loss})
    plot_losses(entries, tmp_path / "loss.png", "")
    np.testing.assert_allclose(lines(figure)["evaluation"].get_ydata(), math.log(40.0))
    (scale,) = figure[0].axes[0].child_axes
    assert scale.get_ylabel() == "perplexity"
    assert 50 in scale.get_yticks()


def test_huge_losses_and_perplexities(tmp_path: Path) -> None:
    """The exponential of such a loss is no number any more."""
    entries = [{"step": 1, "loss": 2000.0, "eval_loss": 900.0}, {"step": 1, "eval_perplexity": 1e9}]
    plot_losses(entries, tmp_path / "loss.png", "")


@pytest.mark.parametrize(
    "entries", [[], [{"step": 1, "eval_accuracy": 1.0}], [{"step": 1, "loss": math.nan}]]
)
def test_no_loss(tmp_path: Path, entries: list[dict[str, Any]]) -> None:
    with pytest.raises(ArgumentError, match="no finite loss or eval_loss"):
        plot_losses(entries, tmp_path / "loss.png", "")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "loss.png"
    path.write_text("old")

    def half(self: Figure, file: Path, **options: Any) -> None:
        file.write_text("half")
        raise OSError("full")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="full"):
        plot_losses(history(5), path, "")
    assert [p.name for p in tmp_path.iterdir()] == ["loss.png"]
    assert path.read_text() == "old"
