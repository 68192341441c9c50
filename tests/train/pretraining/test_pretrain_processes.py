"""Two processes on a CPU: what one process computes with the same batch."""

from __future__ import annotations

from dataclasses import replace

import _pretrain_processes as processes
import pytest
from pretraining_runs import assert_alike, history, memories
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


@pytest.fixture(scope="module")
def alone(place):
    """One process with 16 rows in both directions, two batches an update."""
    options = tiny_options(
        place / "alone", place / "articles.txt", dropout=0.0, bi_data=True,
        gradient_accumulation=2, eval_share=0.3, steps=LAST, save_every=RESUMED, eval_every=4,
    )  # fmt: skip
    pretrain(options)
    return options


def test_two_processes_compute_what_one_does(place, alone):
    """DDP, and FSDP2 with activation checkpointing; then a resume of half of each run."""
    ddp = replace(alone, output=place / "ddp", batch_size=alone.batch_size // 2)
    fsdp = replace(ddp, output=place / "fsdp", fsdp=True, gradient_checkpointing=True)
    in_two_processes(processes.run_and_resume, place, [ddp, fsdp], RESUMED)
    for run in (ddp.output, fsdp.output):
        said = [(place / f"{run.name}-said-{rank}").read_text() for rank in range(2)]
        assert [text.count(f"step {LAST}/{LAST}") for text in said] == [1, 0], "one process prints"
        assert_alike(run, alone.output, LAST)
        assert memories(run, RESUMED) == ["memory-0.safetensors", "memory-1.safetensors"]
        found = XLNetLMHeadModel.from_pretrained(run / "model", output_loading_info=True)[1]
        assert not any(found.values())

        # In the middle of the second epoch: its documents stand in another order.
        epoch = history(run, RESUMED)[-1]["epoch"]
        assert epoch > 1
        assert epoch % 1 > 0
        assert_alike(place / f"{run.name}-resumed", run, LAST)


def test_what_two_processes_refuse(place, alone):
    other_number = replace(alone, batch_size=8, resume=True)
    odd = replace(alone, output=place / "odd", batch_size=1)
    wrong = [
        (other_number, "batch_size was 16 and is 8; processes was 1 and is 2"),
        (odd, r"2 rows cannot be shared by 2 process\(es\) in two directions each"),
    ]
    in_two_processes(processes.be_refused, place, wrong)
