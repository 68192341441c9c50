"""What each of two processes runs in the tests of pretraining."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from undrawn import write_nothing

from xlnet_fast.errors import XLNetFastError
from xlnet_fast.train.pretraining import PretrainOptions, pretrain


def run(rank: int, place: Path, options: PretrainOptions) -> None:
    """Pretrain, and keep what was printed in a file of each process."""
    Figure.savefig = write_nothing
    os.environ["XDG_CACHE_HOME"] = str(place / "cache")
    said = place / f"{options.output.name}-said-{rank}"
    with open(said, "w") as file, contextlib.redirect_stderr(file):
        pretrain(options)


def run_and_resume(rank: int, place: Path, runs: list[PretrainOptions], step: int) -> None:
    """Each run, and again from its checkpoint of a step in a folder that ends in "-resumed"."""
    for options in runs:
        run(rank, place, options)
        resumed = options.output.with_name(f"{options.output.name}-resumed")
        if rank == 0:
            resumed.mkdir()
            shutil.copy(options.output / "pretrain.json", resumed)
            name = f"checkpoint-{step}"
            shutil.copytree(options.output / name, resumed / name)
        torch.distributed.barrier()
        run(rank, place, replace(options, output=resumed, resume=True))


def be_refused(rank: int, place: Path, wrong: list[tuple[PretrainOptions, str]]) -> None:
    """With the words that each of them is refused with."""
    for options, words in wrong:
        with pytest.raises(XLNetFastError, match=words):
            run(rank, place, options)
