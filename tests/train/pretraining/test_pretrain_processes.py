"""Two processes on a CPU: what one process computes with the same batch."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import _pretrain_processes as processes
import pytest
import torch
from safetensors.torch import load_file
from tiny_pretraining import tiny_options, write_text
from transformers import XLNetLMHeadModel
from two_processes import in_two_processes

from xlnet_fast.train.pretraining import pretrain

RESUMED, LAST = 9, 11  # steps; an epoch has 8 updates


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the text, and a cache of these tests alone."""
    folder = tmp_path_factory.mktemp("processes")
    write_text(folder / "articles.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


def history(folder: Path, step: int) -> list[dict[str, float]]:
    return json.loads((folder / f"checkpoint-{step}" / "trainer_state.json").read_text())[
        "log_history"
    ]


def assert_alike(one: Path, other: Path) -> None:
    """Weights, losses, gradient norms and evaluations, but for roundings."""
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (one, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], atol=1e-6), name
    for entry, expected in zip(history(one, LAST), history(other, LAST), strict=True):
        assert entry["step"] == expected["step"]
        for name in ("loss", "grad_norm", "eval_loss"):
            wanted = expected.get(name, math.nan)
            found = entry.get(name, math.nan)
            assert found == pytest.approx(wanted, rel=1e-5, nan_ok=True), name


@pytest.fixture(scope="module")
def alone(place):
    """One process with 16 rows in both directions, two batches an update."""
    options = tiny_options(
        place / "alone", place / "articles.txt", dropout=0.0, bi_data=True,
        gradient_accumulation=2, eval_share=0.3, steps=LAST, save_every=RESUMED, eval_every=4,
    )  # fmt: skip
    pretrain(options)
    return options


@pytest.mark.parametrize("changes", [{}, {"fsdp": True, "gradient_checkpointing": True}], ids=str)
def test_two_processes_compute_what_one_does(place, alone, changes):
    """DDP, and FSDP2 with activation checkpointing; then a resume of half the run."""
    name = "fsdp" if changes else "ddp"
    options = replace(alone, output=place / name, batch_size=alone.batch_size // 2, **changes)
    in_two_processes(processes.run, place, options)
    said = [(place / f"said-{rank}").read_text() for rank in range(2)]
    assert [text.count(f"step {LAST}/{LAST}") for text in said] == [1, 0], "one process prints"
    assert_alike(options.output, alone.output)
    memories = sorted(
        path.name for path in (options.output / f"checkpoint-{RESUMED}").glob("memory-*")
    )
    assert memories == ["memory-0.safetensors", "memory-1.safetensors"]
    found = XLNetLMHeadModel.from_pretrained(options.output / "model", output_loading_info=True)[1]
    assert not any(found.values())

    # In the middle of the second epoch: its documents stand in another order.
    epoch = history(options.output, RESUMED)[-1]["epoch"]
    assert epoch > 1
    assert epoch % 1 > 0
    resumed = replace(options, output=place / f"{name}-resumed", resume=True)
    resumed.output.mkdir()
    shutil.copy(options.output / "pretrain.json", resumed.output)
    name = f"checkpoint-{RESUMED}"
    shutil.copytree(options.output / name, resumed.output / name)
    in_two_processes(processes.run, place, resumed)
    assert_alike(resumed.output, options.output)


def test_another_number_of_processes_cannot_resume(place, alone):
    options = replace(alone, batch_size=8, resume=True)
    words = "batch_size was 16 and is 8; processes was 1 and is 2"
    in_two_processes(processes.be_refused, place, options, words)


def test_rows_that_two_processes_cannot_share(place, alone):
    options = replace(alone, output=place / "odd", batch_size=1)
    words = r"2 rows cannot be shared by 2 process\(es\) in two directions each"
    in_two_processes(processes.be_refused, place, options, words)
