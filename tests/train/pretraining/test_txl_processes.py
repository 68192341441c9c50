"""Transformer-XL in two processes on a CPU: what one process computes with the same batch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import _pretrain_processes as processes
import pytest
import torch
from safetensors.torch import load_file
from tiny_pretraining import tiny_options, write_text
from two_processes import in_two_processes

from xlnet_fast.train.pretraining import pretrain

RESUMED, LAST = 3, 4


def curve(folder: Path) -> list[float]:
    state = json.loads((folder / f"checkpoint-{LAST}" / "trainer_state.json").read_text())
    return [entry[name] for entry in state["log_history"] for name in entry if "loss" in name]


def assert_alike(one: Path, other: Path) -> None:
    """Weights, losses and evaluations, but for roundings."""
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (one, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], atol=1e-6), name
    assert curve(one) == pytest.approx(curve(other), rel=1e-5)


def test_two_processes_compute_what_one_does(tmp_path, monkeypatch):
    """And a resume of two what they did, each with the memory of its rows."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = write_text(tmp_path / "articles.txt")
    alone = tiny_options(
        tmp_path / "alone", text, arch="transfo-xl", dropout=0.0, seq_len=24, cutoffs="50,150",
        gradient_accumulation=2, steps=LAST, save_every=RESUMED, eval_share=0.3,
    )  # fmt: skip
    pretrain(alone)
    two = replace(alone, output=tmp_path / "two", batch_size=alone.batch_size // 2)
    in_two_processes(processes.run_and_resume, tmp_path, [two], RESUMED)
    assert_alike(two.output, alone.output)
    memories = sorted(path.name for path in (two.output / f"checkpoint-{RESUMED}").glob("memory-*"))
    assert memories == ["memory-0.safetensors", "memory-1.safetensors"]
    assert_alike(tmp_path / "two-resumed", two.output)
