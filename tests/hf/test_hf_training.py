"""Training: the same loss curve accelerated and not, with mems, and through HF's Trainer."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from hf_parity import (
    F64,
    accelerated,
    hf_in,
    one_hot_targets,
    padding,
    random_ids,
    tiny_config,
    tiny_model,
)
from transformers import (
    Trainer,
    TrainingArguments,
    XLNetForSequenceClassification,
    XLNetLMHeadModel,
)

import xlnet_fast

pytestmark = pytest.mark.filterwarnings("ignore:.*checkpointing.* is deprecated:FutureWarning")
STEPS = 12


def train(model, batches):
    """Loss of every step, and the parameters at the end."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    mems, losses = None, []
    for batch in batches:
        output = model(**batch, mems=mems, use_mems=True)
        mems = output.mems
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    return torch.tensor(losses), [p.detach().clone() for p in model.parameters()]


def pretraining_batch(seed):
    """Two streams: the last half of a permutation is predicted."""
    ids = random_ids(4, 8, seed)
    rank = torch.stack([torch.randperm(8) for _ in range(4)])
    positions = rank.argsort(1)[:, 4:]
    return {
        "input_ids": ids,
        "perm_mask": (rank[:, :, None] <= rank[:, None, :]).double(),
        "target_mapping": one_hot_targets(positions.tolist(), 8).double(),
        "labels": ids.gather(1, positions),
    }


def test_pretraining_has_the_same_loss_curve():
    model = tiny_model(XLNetLMHeadModel, F64, mem_len=6).train()
    batch = pretraining_batch(0)
    batches = [batch] * STEPS
    expected, parameters = train(hf_in(model, F64), batches)
    ours = accelerated(model)
    actual, ours_parameters = train(ours, batches)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
    assert actual[-1] < 0.8 * actual[0]
    for a, b in zip(ours_parameters, parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_fine_tuning_with_dropout_learns():
    torch.manual_seed(0)
    model = XLNetForSequenceClassification(tiny_config(dropout=0.1, summary_last_dropout=0.1))
    xlnet_fast.accelerate(model).train()
    ids = random_ids(16, 10)
    batch = {"input_ids": ids, "labels": (ids[:, 0] > 25).long()}
    batch["attention_mask"] = padding(16, 10, "right").clamp(min=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])


class Examples(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        ids = random_ids(1, 6, index)[0]
        return {"input_ids": ids, "attention_mask": torch.ones(6), "labels": index % 2}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_or_the_loop_it_runs(checkpointing, tmp_path):
    """One epoch in HF's Trainer; without the package it needs, of what it does: forward in
    training mode, backward, clipped step, zeroed gradients. Parameters end up as HF's.
    """
    results = []
    for fast in (False, True):
        model = tiny_model(XLNetForSequenceClassification, F64)
        if fast:
            xlnet_fast.accelerate(model)
            if checkpointing:
                model.gradient_checkpointing_enable()
        if importlib.util.find_spec("accelerate") is not None:
            arguments = TrainingArguments(
                str(tmp_path),
                num_train_epochs=1,
                per_device_train_batch_size=4,
                report_to=[],
                save_strategy="no",
                use_cpu=True,
                disable_tqdm=True,
                seed=0,
            )
            Trainer(model=model, args=arguments, train_dataset=Examples()).train()
        else:
            model.train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
            for batch in torch.utils.data.DataLoader(Examples(), batch_size=4):
                model(**batch).loss.backward()
                nn_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                assert nn_norm.isfinite()
                optimizer.step()
                optimizer.zero_grad()
        results.append({name: p.detach() for name, p in model.named_parameters()})
    start = dict(tiny_model(XLNetForSequenceClassification, F64).named_parameters())
    moved = 0
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-7, atol=1e-9)
        moved += not torch.equal(value, start[name])
    assert moved > len(results[0]) // 2
