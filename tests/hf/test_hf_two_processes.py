"""Two processes on a CPU: DDP with gradient checkpointing, by `Trainer` and by a loop by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainingArguments, XLNetConfig, XLNetForSequenceClassification
from two_processes import in_two_processes

import xlnet_fast

STEPS, BATCH, LENGTH = 3, 2, 6
GENERATOR = torch.Generator().manual_seed(0)
IDS = torch.randint(0, 30, (2 * STEPS * BATCH, LENGTH), generator=GENERATOR)
LABELS = torch.arange(len(IDS)) % 2
RECOMPUTED = {None: "kept", False: "recomputed", True: "recomputed, reentrant"}


class Texts(torch.utils.data.Dataset):
    """Without `token_type_ids`: the segments' parameters are left out, and `mask_emb`."""

    def __len__(self) -> int:
        return len(IDS)

    def __getitem__(self, number: int) -> dict:
        return {"input_ids": IDS[number], "labels": LABELS[number]}


def classifier(accelerated: bool) -> XLNetForSequenceClassification:
    torch.manual_seed(0)
    config = XLNetConfig(vocab_size=30, d_model=16, n_head=2, d_inner=16, n_layer=2,
                         dropout=0.0, summary_last_dropout=0.0)  # fmt: skip
    model = XLNetForSequenceClassification(config).train()
    return xlnet_fast.accelerate(model) if accelerated else model


def by_trainer(
    folder: Path, accelerated: bool, reentrant: bool | None = None, bf16: bool = False
) -> list[float]:
    """The gradients' norm of each step, and the mean of the losses: each loss is rounded."""
    recompute = {"gradient_checkpointing": True,
                 "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}  # fmt: skip
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=BATCH, max_steps=STEPS, logging_steps=1,
        learning_rate=1e-2, seed=0, bf16=bf16, use_cpu=True, report_to=[], save_strategy="no",
        disable_tqdm=True, ddp_find_unused_parameters=None if accelerated else True,
        **({} if reentrant is None else recompute),
    )  # fmt: skip
    trainer = Trainer(classifier(accelerated), arguments, train_dataset=Texts())
    mean_loss = trainer.train().training_loss
    assert isinstance(trainer.model_wrapped, DistributedDataParallel)
    history = trainer.state.log_history
    norms = [entry["grad_norm"] for entry in history if "grad_norm" in entry]
    assert len(norms) == STEPS
    return [*norms, mean_loss]


def by_hand(rank: int, accelerated: bool, reentrant: bool | None = None) -> list[float]:
    """Losses and a gradient's norm, step by step."""
    model = classifier(accelerated)
    if reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    wrapped = DistributedDataParallel(model, find_unused_parameters=not accelerated)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    values = []
    for step in range(STEPS):
        rows = slice((2 * step + rank) * BATCH, (2 * step + rank + 1) * BATCH)
        loss = wrapped(input_ids=IDS[rows], labels=LABELS[rows]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values += [float(loss.detach()), float(model.transformer.layer[0].rel_attn.q.grad.norm())]
    return values


def train_every_way(rank: int, folder: Path) -> None:
    ways = [("Hugging Face", False, None)]
    ways += [(name, True, kind) for kind, name in RECOMPUTED.items()]
    # bf16 last: with transformers 4.57 it stays on in the process.
    trained = {name: by_trainer(folder, ours, kind) for name, ours, kind in ways}
    trained |= {
        f"{name}, bf16": by_trainer(folder, ours, kind, bf16=True) for name, ours, kind in ways
    }
    # The first trainer has made them one group.
    loop = {"Hugging Face": by_hand(rank, False)}
    loop |= {name: by_hand(rank, True, kind) for kind, name in RECOMPUTED.items()}
    torch.save((loop, trained), folder / f"values{rank}.pt")


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    """Of both ranks: of the loop and of `Trainer`, by way."""
    folder = tmp_path_factory.mktemp("two")
    in_two_processes(train_every_way, folder)
    return [torch.load(folder / f"values{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", RECOMPUTED.values())
def test_a_loop_of_ones_own(values, name):
    for loop, _ in values:
        assert loop[name] == pytest.approx(loop["Hugging Face"], rel=2e-5)
    assert values[0][0][name] != values[1][0][name], "each rank has rows of its own"


@pytest.mark.parametrize("name", RECOMPUTED.values())
def test_trainer(values, name):
    trained = values[0][1]
    assert trained[name] == pytest.approx(trained["Hugging Face"], rel=2e-5)
    exact = torch.tensor(trained["Hugging Face"])
    ours, theirs = (torch.tensor(trained[f"{way}, bf16"]) for way in (name, "Hugging Face"))
    rounding = torch.finfo(torch.bfloat16).eps * exact
    assert bool(((ours - exact).abs() <= 2 * ((theirs - exact).abs().max() + rounding)).all())
