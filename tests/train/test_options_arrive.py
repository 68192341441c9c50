"""What a run is asked for is what Hugging Face's Trainer is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tiny_finetuning import ROWS, checkpoint
from tiny_pretraining import tiny_options, write_text
from transformers import TrainingArguments

from xlnet_fast.train.finetune import FinetuneOptions, finetune
from xlnet_fast.train.finetune.trainer import FinetuneTrainer
from xlnet_fast.train.pretraining import pretrain
from xlnet_fast.train.pretraining.trainer import PretrainingTrainer
from xlnet_fast.train.shared.trainer import XLNetTrainer

SHARED = {  # option: value, and how TrainingArguments call it and hold it
    "batch_size": (2, "per_device_train_batch_size", 2),
    "gradient_accumulation": (3, "gradient_accumulation_steps", 3),
    "learning_rate": (3e-4, "learning_rate", 3e-4),
    "schedule": ("cosine", "lr_scheduler_type", "cosine"),
    "warmup": (7.0, "warmup_steps", 7),
    "weight_decay": (0.3, "weight_decay", 0.3),
    "adam_epsilon": (1e-4, "adam_epsilon", 1e-4),
    "max_grad_norm": (0.5, "max_grad_norm", 0.5),
    "precision": ("bf16", "bf16", True),
    "gradient_checkpointing": (True, "gradient_checkpointing", True),
    "seed": (5, "seed", 5),
    "steps": (11, "max_steps", 11),
    "log_every": (3, "logging_steps", 3),
    "eval_every": (4, "eval_steps", 4),
    "keep": (6, "save_total_limit", 6),
}
PRETRAIN = {
    **SHARED,
    "save_every": (5, "save_steps", 5),
    "workers": (1, "dataloader_num_workers", 1),
    "compile": (True, "torch_compile", True),
}
FINETUNE = {
    **SHARED,
    "eval_batch_size": (9, "per_device_eval_batch_size", 9),
    "epochs": (1.5, "num_train_epochs", 1.5),
    "best_metric": ("f1_macro", "metric_for_best_model", "eval_f1_macro"),
}


class Caught(Exception):
    """The run has come to its training."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def told(monkeypatch) -> list[TrainingArguments]:
    """The arguments of the trainer, which does not train."""
    arguments: list[TrainingArguments] = []

    def train(self: XLNetTrainer, *_: Any) -> None:
        arguments.append(self.args)
        raise Caught

    monkeypatch.setattr(PretrainingTrainer, "train", train)
    monkeypatch.setattr(FinetuneTrainer, "train", train)
    return arguments


def assert_told(arguments: TrainingArguments, options: dict[str, tuple[Any, str, Any]]) -> None:
    expected = {argument: value for _, argument, value in options.values()}
    assert {argument: getattr(arguments, argument) for argument in expected} == expected


def test_pretraining(tmp_path, told):
    text = write_text(tmp_path / "text.txt")
    values = {name: value for name, (value, _, _) in PRETRAIN.items()}
    with pytest.raises(Caught):
        pretrain(tiny_options(tmp_path / "run", text, **values))
    assert_told(told[0], PRETRAIN)
    assert told[0].eval_strategy == told[0].save_strategy == "steps"


def test_fine_tuning(tmp_path, told):
    train = tmp_path / "train.jsonl"
    rows = ROWS["text-classification"](8)
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {name: value for name, (value, _, _) in FINETUNE.items()}
    model = str(checkpoint(tmp_path / "model"))
    with pytest.raises(Caught):
        finetune(
            FinetuneOptions(
                task="text-classification",
                model=model,
                train=str(train),
                eval=str(train),
                output=tmp_path / "run",
                **values,
            )
        )
    assert_told(told[0], FINETUNE)
    assert told[0].save_steps == told[0].eval_steps  # the best one is among those saved


def test_a_share_of_warm_up(tmp_path, told):
    text = write_text(tmp_path / "text.txt")
    with pytest.raises(Caught):
        pretrain(tiny_options(tmp_path / "run", text, warmup=0.25, steps=12))
    assert told[0].get_warmup_steps(12) == 3
