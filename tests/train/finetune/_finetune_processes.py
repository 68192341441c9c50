"""What each of two processes runs in the tests of fine-tuning."""

from __future__ import annotations

from pathlib import Path

import datasets
from matplotlib.figure import Figure
from undrawn import write_nothing

from xlnet_fast.train.finetune import FinetuneOptions, finetune


def run(rank: int, cache: Path, runs: list[FinetuneOptions]) -> None:
    Figure.savefig = write_nothing
    datasets.config.HF_DATASETS_CACHE = cache
    for options in runs:
        finetune(options)
