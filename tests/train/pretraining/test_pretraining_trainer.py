"""`PretrainingTrainer`: memory from step to step, the loss of a global batch, evaluation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretraining_runs import plain_sgd, same, watch
from torch import Tensor
from transformers import XLNetConfig, XLNetLMHeadModel

from xlnet_fast import accelerate, restore
from xlnet_fast.errors import ArgumentError
from xlnet_fast.train.pretraining.collator import collate
from xlnet_fast.train.pretraining.corpus import Corpus, Vocabulary
from xlnet_fast.train.pretraining.streams import PermutationStreams, SequenceShape
from xlnet_fast.train.pretraining.trainer import PretrainingTrainer, permutation_loss

SHAPE = SequenceShape(seq_len=16, reuse_len=8, perm_size=8, num_predict=11)
VOCABULARY = Vocabulary(30, np.ones(30, bool), sep=4, cls=3, eod=7, unk=0)
ROWS, STEPS_AN_EPOCH = 2, 3


def streams(tokens: int | None = None, rows: int = ROWS) -> PermutationStreams:
    """Random tokens; by default as many as give three steps an epoch."""
    count = rows * (16 + 2 * 8) if tokens is None else tokens
    ids = np.random.default_rng(0).integers(8, 30, count).astype(np.uint16)
    starts = np.arange(0, count, 5)
    return PermutationStreams(Corpus(ids, starts, np.array([0])), VOCABULARY, SHAPE, rows)


def model(memory: int = 12) -> XLNetLMHeadModel:
    torch.manual_seed(0)
    config = XLNetConfig(
        vocab_size=30, d_model=16, n_layer=2, n_head=2, d_inner=16, dropout=0.0, mem_len=memory,
        reuse_len=8, initializer_range=0.2,
    )  # fmt: skip
    return accelerate(XLNetLMHeadModel(config))


def trainer(folder: Path, **changes: Any) -> PretrainingTrainer:
    names = ("model", "carry_memory", "eval_dataset")
    own = {name: changes.pop(name) for name in names if name in changes}
    own.setdefault("model", model())
    arguments = plain_sgd(folder, ROWS, **changes)
    return PretrainingTrainer(args=arguments, train_dataset=streams(), **own)


def test_memory_goes_from_step_to_step_and_starts_anew_with_an_epoch(tmp_path, monkeypatch):
    run = trainer(tmp_path, max_steps=5)
    calls = watch(run.model, monkeypatch)
    run.train()
    assert len(calls) == 5
    for step, (given, _) in enumerate(calls):
        if step % STEPS_AN_EPOCH == 0:
            assert given is None
        else:
            assert same(given, calls[step - 1][1])
            assert not any(layer.requires_grad for layer in given)
    assert [layer.shape for layer in calls[-1][1]] == [(12, ROWS, 16)] * 2


def test_the_memory_of_a_checkpoint_has_its_layers_in_order(tmp_path):
    run = trainer(tmp_path)
    run.save_model(str(tmp_path / "saved"))
    run._memory = tuple(torch.full((2, 1, 4), float(layer)) for layer in range(11))
    run._memory_epoch = 3
    run.save_extra(tmp_path / "saved")
    run._memory = None
    run._load_from_checkpoint(str(tmp_path / "saved"))
    assert [int(layer[0, 0, 0]) for layer in run._memory] == list(range(11))
    assert run._memory_epoch == 3


def test_memory_goes_through_accumulated_batches(tmp_path, monkeypatch):
    run = trainer(tmp_path, max_steps=1, gradient_accumulation_steps=3)
    calls = watch(run.model, monkeypatch)
    run.train()
    assert [given is None for given, _ in calls] == [True, False, False]
    assert same(calls[2][0], calls[1][1])


def test_without_memory_every_sequence_stands_alone(tmp_path, monkeypatch):
    run = trainer(tmp_path, carry_memory=False)
    calls = watch(run.model, monkeypatch)
    run.train()
    assert all(given is None and returned is None for given, returned in calls)


def test_an_evaluation_has_a_memory_of_its_own(tmp_path, monkeypatch):
    """Begun anew, carried along, and the training's is the same behind it."""
    run = trainer(tmp_path, max_steps=2, eval_steps=1, eval_dataset=streams())
    calls = watch(run.model, monkeypatch)
    run.train()
    assert len(calls) == 2 + 2 * STEPS_AN_EPOCH
    training = [calls[0], calls[1 + STEPS_AN_EPOCH]]
    evaluations = calls[1 : 1 + STEPS_AN_EPOCH], calls[2 + STEPS_AN_EPOCH :]
    for evaluation in evaluations:
        assert evaluation[0][0] is None
        assert same(evaluation[1][0], evaluation[0][1])
    assert same(training[1][0], training[0][1])


def test_accelerated_models_get_the_compact_form_and_others_hugging_faces(tmp_path):
    accelerated = trainer(tmp_path)
    plain = trainer(tmp_path, model=restore(model()))
    items = streams().__getitems__([0, 1])
    compact, dense = accelerated.data_collator(items), plain.data_collator(items)
    assert compact.keys() - dense.keys() == {"permutation_ranks", "target_positions"}
    assert dense.keys() - compact.keys() == {"perm_mask", "target_mapping"}


def sums(module: Any, batch: dict[str, Any], memory: Any = None) -> tuple[Tensor, Tensor, Any]:
    arguments = {name: value for name, value in batch.items() if name != "labels"}
    outputs = module(**arguments, mems=memory, use_mems=True)
    return *permutation_loss(outputs.logits, batch["labels"]), outputs.mems


def batches(data: PermutationStreams) -> list[dict[str, Any]]:
    return [
        collate(data.__getitems__(range(step * data.streams, (step + 1) * data.streams)))
        for step in range(data.steps)
    ]


@pytest.mark.parametrize("accumulation", [2, 3])
def test_the_loss_is_the_mean_over_the_targets_of_all_batches_of_an_update(tmp_path, accumulation):
    """Batches have different numbers of targets; an epoch's last update may have fewer batches."""
    run = trainer(tmp_path, max_steps=2, gradient_accumulation_steps=accumulation)
    run.train()
    by_hand, data, every_count = model().train(), streams(), []
    memory = None
    # Epoch, and its batches, of each update.
    updates = {2: [(0, [0, 1]), (0, [2])], 3: [(0, [0, 1, 2]), (1, [0, 1, 2])]}[accumulation]
    for epoch, steps in updates:
        data.set_epoch(epoch)
        totals, counts = [], []
        for step in steps:
            total, count, memory = sums(by_hand, batches(data)[step], memory if step else None)
            totals.append(total)
            counts.append(count)
        every_count += map(float, counts)
        (sum(totals) / sum(counts)).backward()
        with torch.no_grad():
            for parameter in by_hand.parameters():
                if parameter.grad is not None:
                    parameter -= parameter.grad
                parameter.grad = None
    assert len(set(every_count)) > 1
    for (name, ours), theirs in zip(
        run.model.named_parameters(), by_hand.parameters(), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-5), name


def test_the_evaluation_is_the_mean_over_all_targets(tmp_path):
    run = trainer(tmp_path, eval_dataset=streams())
    metrics = run.evaluate()
    total = count = torch.tensor(0.0)
    memory = None
    with torch.no_grad():
        for batch in batches(streams()):
            more, targets, memory = sums(run.model.eval(), batch, memory)
            total, count = total + more, count + targets
    loss = float(total / count)
    assert math.isclose(metrics["eval_loss"], loss, rel_tol=1e-5)
    assert math.isclose(metrics["eval_perplexity"], math.exp(metrics["eval_loss"]))


def test_the_loss_counts_targets_alone_and_in_fp32():
    logits = torch.randn(2, 3, 30, dtype=torch.bfloat16) * 20
    labels = torch.tensor([[1, 2, -100], [-100, 5, 6]])
    total, count = permutation_loss(logits, labels)
    logs = logits.double().log_softmax(-1)
    picked = [logs[row, column, labels[row, column]] for row, column in labels.ge(0).nonzero()]
    assert (total.dtype, float(count)) == (torch.float32, 4)
    assert math.isclose(float(total), -float(sum(picked)), rel_tol=1e-5)


def test_a_batch_without_targets_gives_no_nan():
    total, count = permutation_loss(torch.randn(1, 2, 30), torch.full((1, 2), -100))
    assert (float(total), float(count)) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"per_device_train_batch_size": 3}, "the train streams have 2 rows"),
        ({"per_device_eval_batch_size": 1, "eval_dataset": streams()}, "the eval streams have 2"),
    ],
    ids=["train", "eval"],
)
def test_batch_sizes_that_do_not_fit(tmp_path, changes, words):
    with pytest.raises(ArgumentError, match=words):
        trainer(tmp_path, **changes)
