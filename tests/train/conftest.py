"""Plots: what is looked at in the tests of both, and how other tests do without."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.figure import Figure
from undrawn import write_nothing


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For runs of which other things are asked."""
    monkeypatch.setattr(Figure, "savefig", write_nothing)


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are written, so that their parts can be looked at."""
    written: list[Figure] = []
    save = Figure.savefig

    def keep(made: Figure, *arguments: Any, **options: Any) -> None:
        written.append(made)
        save(made, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return written
