"""What each of two processes runs in the tests of pretraining."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from undrawn import write_nothing

from xlnet_fast.errors import XLNetFastError
from xlnet_fast.train.pretraining import PretrainOptions, pretrain


def run(rank: int, place: Path, options: PretrainOptions) -> None:
    """Pretrain, and keep what was printed in a file of each process."""
    Figure.savefig = write_nothing
    os.environ["XDG_CACHE_HOME"] = str(place / "cache")
    with open(place / f"said-{rank}", "w") as file, contextlib.redirect_stderr(file):
        pretrain(options)


def be_refused(rank: int, place: Path, options: PretrainOptions, words: str) -> None:
    with pytest.raises(XLNetFastError, match=words):
        run(rank, place, options)
