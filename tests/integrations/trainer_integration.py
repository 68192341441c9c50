"""HF's Trainer in two processes on a CPU: ours with gradient checkpointing, which HF refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hf_parity import accelerated, random_ids, tiny_model
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments, XLNetForSequenceClassification
from two_processes import in_two_processes

import xlnet_fast

ROWS = [
    {"input_ids": ids, "labels": number % 2}
    for number, ids in enumerate(random_ids(16, 6).tolist())
]
LORA = {"r": 2, "target_modules": ["q", "k", "v", "o"]}


def train(rank: int, folder: Path, kind: str, checkpointing: bool | dict) -> None:
    """A few steps of one rank; its losses and model under `folder`."""
    torch.manual_seed(0)
    model = tiny_model(XLNetForSequenceClassification)
    if kind != "theirs":
        model = accelerated(model)
    if kind == "lora":
        model = get_peft_model(xlnet_fast.linear_attention(model), LoraConfig(**LORA))
        model.enable_input_require_grads()
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(folder), max_steps=4, per_device_train_batch_size=2, logging_steps=1,
            learning_rate=1e-2, seed=0, save_strategy="no", report_to="none", disable_tqdm=True,
            use_cpu=True, ddp_backend="gloo", gradient_checkpointing=bool(checkpointing),
            gradient_checkpointing_kwargs=checkpointing or None,
            # Trainer would look for unused ones in what is no model of HF's, which reentrant
            # checkpoints do not stand.
            ddp_find_unused_parameters=False if kind == "lora" else None,
        ),
        train_dataset=ROWS,
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(folder))
    if rank == 0:
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        folder.joinpath("losses.json").write_text(json.dumps(losses))


def losses_of(folder: Path) -> torch.Tensor:
    losses = torch.tensor(json.loads(folder.joinpath("losses.json").read_text()))
    assert len(losses) == 4
    return losses


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("theirs")
    in_two_processes(train, folder, "theirs", False)
    return folder


@pytest.mark.parametrize(
    "checkpointing", [False, {"use_reentrant": False}, {"use_reentrant": True}], ids=str
)
def test_losses_and_weights_are_hugging_faces(theirs, checkpointing, tmp_path):
    in_two_processes(train, tmp_path, "ours", checkpointing)
    torch.testing.assert_close(losses_of(tmp_path), losses_of(theirs), rtol=2e-3, atol=2e-4)
    ours, other = (load_file(f / "model.safetensors") for f in (tmp_path, theirs))
    assert ours.keys() == other.keys()
    start = tiny_model(XLNetForSequenceClassification).state_dict()
    moved = max((other[name] - start[name]).abs().max() for name in other)
    apart = max((other[name] - ours[name]).abs().mean() for name in other)
    assert apart < 0.02 * moved


@pytest.mark.parametrize("checkpointing", [{"use_reentrant": False}, {"use_reentrant": True}])
def test_lora_on_attention(checkpointing, tmp_path):
    """As without checkpointing, in the same two processes."""
    for folder, given in (("without", False), ("with", checkpointing)):
        in_two_processes(train, tmp_path / folder, "lora", given)
    without, found = (losses_of(tmp_path / name) for name in ("without", "with"))
    torch.testing.assert_close(found, without, rtol=1e-3, atol=2e-4)
    one, two = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("without", "with"))
    assert one.keys() == two.keys()
    assert any(name.endswith("rel_attn.o.lora_B.weight") for name in one)
    assert all(value.any() for value in two.values()), "an adapter has not learned"
