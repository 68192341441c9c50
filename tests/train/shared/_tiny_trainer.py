"""A tiny accelerated XLNet with a trainer, for tests, and what their child processes run."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import torch
from transformers import Trainer, TrainerCallback, XLNetConfig, XLNetLMHeadModel

from xlnet_fast.hf.patching import accelerate
from xlnet_fast.train.shared.trainer import XLNetTrainer, training_arguments

VOCABULARY, LENGTH = 50, 8
KILLED_STEP = 4  # the save of this step is killed


def model(dropout: float = 0.1) -> XLNetLMHeadModel:
    torch.manual_seed(7)
    config = XLNetConfig(
        vocab_size=VOCABULARY, d_model=32, n_layer=1, n_head=2, d_inner=32, dropout=dropout
    )
    made = accelerate(XLNetLMHeadModel(config))
    made.transformer.mask_emb.requires_grad_(False)  # of the query stream; DDP wants all in use
    return made


def dataset(size: int = 24) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(3)
    rows = torch.randint(VOCABULARY, (size, LENGTH), generator=draw)
    segments = torch.arange(LENGTH) // 4  # without segments, DDP misses the gradient of seg_embed
    return [{"input_ids": row, "token_type_ids": segments, "labels": row} for row in rows]


def trainer(
    run: Path,
    *,
    kind: type[XLNetTrainer] = XLNetTrainer,
    callbacks: list[TrainerCallback] | None = None,
    compute_metrics: Callable[[Any], dict[str, float]] | None = None,
    dropout: float = 0.1,
    **options: Any,
) -> XLNetTrainer:
    """Eight steps, a log each third and a checkpoint each second one, unless told otherwise."""
    settings: dict[str, Any] = {
        "precision": "fp32", "max_steps": 8, "logging_steps": 3, "save_steps": 2,
        "learning_rate": 1e-2, "per_device_train_batch_size": 4, "report_to": [],
        "save_total_limit": None,
    }  # fmt: skip
    return kind(
        model=model(dropout),
        args=training_arguments(run, **{**settings, **options}),
        train_dataset=dataset(),
        eval_dataset=dataset(6),
        callbacks=callbacks,
        compute_metrics=compute_metrics,
    )


def losses(history: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """The logged training losses, by step."""
    return [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of a folder, as plain HF loads it."""
    loaded = XLNetLMHeadModel.from_pretrained(folder)
    return {name: value.clone() for name, value in loaded.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def hidden(run: Path) -> list[str]:
    """The leftovers of interrupted saves."""
    return sorted(path.name for path in run.iterdir() if path.name.startswith("."))


def kill_at(run: Path, moment: str, what: str = "checkpoint") -> None:
    """Run a child up to a moment of a save, and kill it there."""
    child = forked.process(_train_up_to, run, moment, what)
    child.start()
    ready, deadline = run / "ready", time.monotonic() + 60
    while not ready.exists():
        assert child.is_alive(), f"the child ended before {moment!r}"
        assert time.monotonic() < deadline, f"the child never came to {moment!r}"
        time.sleep(0.01)
    child.kill()
    child.join()
    ready.unlink()


def _train_up_to(run: Path, moment: str, what: str) -> None:
    torch.set_num_threads(1)
    subject = trainer(run, save_total_limit=1, save_steps=2 if what == "checkpoint" else 100)
    subject.add_callback(_Hang(run, moment) if what == "checkpoint" else TrainerCallback())
    subject.train()
    if what == "model":
        _arm(run, moment)
        subject.save_model()


class _Hang(TrainerCallback):
    """Arms the hang before the step whose save is to be killed."""

    def __init__(self, run: Path, moment: str) -> None:
        self.run, self.moment = run, moment

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == KILLED_STEP - 1:
            _arm(self.run, self.moment)


def _arm(run: Path, moment: str) -> None:
    """Replace one function by one that hangs in the middle of its work."""

    def hang() -> None:
        (run / "ready").touch()
        time.sleep(120)

    def hang_before(function: Any, wanted: Callable[..., bool]) -> Any:
        def hanging(*args: Any, **kwargs: Any) -> Any:
            if wanted(*map(str, args)):
                hang()
            return function(*args, **kwargs)

        return hanging

    def half_a_model(self: Any, folder: str, state_dict: Any = None) -> None:
        write(self, folder, state_dict)
        os.truncate(Path(folder, "model.safetensors"), 1000)
        hang()

    def half_an_optimizer(self: Any, folder: str) -> None:
        Path(folder, "optimizer.pt").write_bytes(b"PK")
        hang()

    write = Trainer._save
    if moment == "weights":
        Trainer._save = half_a_model
    elif moment == "optimizer":
        Trainer._save_optimizer_and_scheduler = half_an_optimizer
    elif moment == "rename":
        os.rename = hang_before(os.rename, lambda a, b: b.endswith("checkpoint-4"))
    elif moment == "rotation":
        shutil.rmtree = hang_before(shutil.rmtree, lambda a, *rest: ".removing" in a)
    elif moment == "move":
        os.replace = hang_before(os.replace, lambda a, b: b.endswith("model.safetensors"))
    else:
        raise AssertionError(moment)
