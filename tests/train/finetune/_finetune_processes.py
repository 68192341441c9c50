"""What each of two processes runs in the tests of fine-tuning."""

from __future__ import annotations

import shutil
from pathlib import Path

import datasets
import torch
from matplotlib.figure import Figure
from undrawn import write_nothing

from xlnet_fast.train.finetune import FinetuneOptions, finetune


def run(
    rank: int, cache: Path, runs: list[FinetuneOptions], cut: FinetuneOptions, step: int
) -> None:
    """Each run, and ``cut``, which is the first one as it was killed behind a step, and resumed."""
    Figure.savefig = write_nothing
    datasets.config.HF_DATASETS_CACHE = cache
    for options in runs:
        finetune(options)
    if rank == 0:
        later = [f"checkpoint-{later}" for later in range(step + 1, runs[0].steps + 1)]
        ignored = shutil.ignore_patterns("model", *later)
        shutil.copytree(runs[0].output, cut.output, ignore=ignored)
    torch.distributed.barrier()
    finetune(cut)
