"""What tests of pretraining ask of a run's folder, and of a trainer of any architecture."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainingArguments

from xlnet_fast.train.shared.trainer import training_arguments


def history(folder: Path, step: int) -> list[dict[str, float]]:
    """What the trainer had logged when it saved a checkpoint."""
    state = json.loads((folder / f"checkpoint-{step}" / "trainer_state.json").read_text())
    return state["log_history"]


def losses(folder: Path, step: int) -> dict[int, float]:
    """Training loss by step."""
    return {entry["step"]: entry["loss"] for entry in history(folder, step) if "loss" in entry}


def weights(folder: Path) -> dict[str, Tensor]:
    """Those of the model that a run left."""
    return load_file(folder / "model" / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    """To the last bit."""
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def assert_alike(one: Path, other: Path, last: int) -> None:
    """Weights, losses, gradient norms and evaluations, but for roundings."""
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], atol=1e-6), name
    for entry, expected in zip(history(one, last), history(other, last), strict=True):
        assert entry["step"] == expected["step"]
        for name in ("loss", "grad_norm", "eval_loss"):
            wanted = expected.get(name, math.nan)
            found = entry.get(name, math.nan)
            assert found == pytest.approx(wanted, rel=1e-5, nan_ok=True), name


def memories(folder: Path, step: int) -> list[str]:
    """Names of the files of memory in a checkpoint."""
    return sorted(path.name for path in (folder / f"checkpoint-{step}").glob("memory-*"))


def part_of(run: Path, target: Path, step: int) -> None:
    """What a run that was killed behind a step's checkpoint has left."""
    target.mkdir()
    shutil.copy(run / "pretrain.json", target)
    shutil.copytree(run / f"checkpoint-{step}", target / f"checkpoint-{step}")


def plain_sgd(folder: Path, rows: int, **changes: Any) -> TrainingArguments:
    """A step of the weights is the gradient."""
    values = {
        "per_device_train_batch_size": rows, "per_device_eval_batch_size": rows,
        "max_steps": 4, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant", "weight_decay": 0.0, "report_to": "none",
        "remove_unused_columns": False, "prediction_loss_only": True, **changes,
    }  # fmt: skip
    return training_arguments(folder, precision="fp32", logging_steps=1, save_steps=None, **values)


def watch(module: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """(mems given, mems returned) of every forward."""
    calls = []
    forward = module.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        outputs = forward(*args, **kwargs)
        calls.append((kwargs["mems"], outputs.mems))
        return outputs

    monkeypatch.setattr(module, "forward", watched)
    return calls


def same(memory: Any, other: Any) -> bool:
    """Whether two memories have the same bits in each layer."""
    return all(torch.equal(a, b) for a, b in zip(memory, other, strict=True))
