"""Transformer-XL in two processes on a CPU: what one process computes with the same batch."""

from __future__ import annotations

from dataclasses import replace

import _pretrain_processes as processes
from pretraining_runs import assert_alike, memories
from tiny_pretraining import tiny_options, write_text
from two_processes import in_two_processes

from xlnet_fast.train.pretraining import pretrain

RESUMED, LAST = 3, 4


def test_two_processes_compute_what_one_does(tmp_path, monkeypatch):
    """DDP and FSDP2, with a cluster of which no text has a word; then a resume of each."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = write_text(tmp_path / "articles.txt")
    alone = tiny_options(
        tmp_path / "alone", text, arch="transfo-xl", dropout=0.0, seq_len=24, div_val=2,
        cutoffs="1,7,50", gradient_accumulation=2, steps=LAST, save_every=RESUMED,
        eval_share=0.3,
    )  # fmt: skip
    pretrain(alone)
    ddp = replace(alone, output=tmp_path / "ddp", batch_size=alone.batch_size // 2)
    fsdp = replace(ddp, output=tmp_path / "fsdp", fsdp=True, gradient_checkpointing=True)
    in_two_processes(processes.run_and_resume, tmp_path, [ddp, fsdp], RESUMED)
    for run in (ddp.output, fsdp.output):
        assert_alike(run, alone.output, LAST)
        assert memories(run, RESUMED) == ["memory-0.safetensors", "memory-1.safetensors"]
        assert_alike(tmp_path / f"{run.name}-resumed", run, LAST)
