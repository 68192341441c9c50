"""`SegmentTrainer`: memory from step to step, and a loss that no division of the text changes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretraining_runs import plain_sgd, same, watch
from torch import Tensor

from xlnet_fast.errors import ArgumentError
from xlnet_fast.models.transfo_xl import TransfoXLConfig, TransfoXLLMHeadModel
from xlnet_fast.train.pretraining.corpus import Corpus, TextVocabulary
from xlnet_fast.train.pretraining.transfo_xl.streams import SegmentStreams, collate
from xlnet_fast.train.pretraining.transfo_xl.trainer import SegmentTrainer

VOCABULARY = TextVocabulary(30, eod=7, unk=0)
ROWS, LENGTH, STREAM = 2, 8, 21  # segments of 8, 8 and 5 tokens
STEPS_AN_EPOCH = 3


def streams(seq_len: int = LENGTH) -> SegmentStreams:
    ids = np.random.default_rng(0).integers(8, 30, ROWS * STREAM).astype(np.uint16)
    return SegmentStreams(Corpus(ids, np.array([0]), np.array([0])), VOCABULARY, seq_len, ROWS)


def model(**changes: Any) -> TransfoXLLMHeadModel:
    """Two layers; clusters unless told otherwise."""
    torch.manual_seed(0)
    values = {
        "vocab_size": 30, "cutoffs": [10, 20], "div_val": 2, "d_model": 16, "d_embed": 16,
        "n_head": 2, "d_head": 8, "d_inner": 16, "n_layer": 2, "mem_len": 12, "dropout": 0.0,
        "dropatt": 0.0, "same_length": False, "clamp_len": -1, "initial_memory": "empty",
        "init_std": 0.2, "proj_init_std": 0.2, "eos_token_id": 7,
    }  # fmt: skip
    return TransfoXLLMHeadModel(TransfoXLConfig(**{**values, **changes}))


def trainer(folder: Path, **changes: Any) -> SegmentTrainer:
    names = ("model", "carry_memory", "train_dataset", "eval_dataset")
    own = {name: changes.pop(name) for name in names if name in changes}
    own = {"model": model(), "train_dataset": streams(), **own}
    return SegmentTrainer(args=plain_sgd(folder, ROWS, learning_rate=0.5, **changes), **own)


def test_memory_grows_from_nothing_and_starts_anew_with_an_epoch(tmp_path, monkeypatch):
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
    shapes = [[tuple(layer.shape) for layer in returned] for _, returned in calls]
    assert shapes == [[(length, ROWS, 16)] * 2 for length in (8, 12, 12, 8, 12)]


def test_memory_goes_through_accumulated_batches(tmp_path, monkeypatch):
    run = trainer(tmp_path, max_steps=1, gradient_accumulation_steps=3)
    calls = watch(run.model, monkeypatch)
    run.train()
    assert [given is None for given, _ in calls] == [True, False, False]
    assert same(calls[2][0], calls[1][1])


def test_without_memory_every_segment_stands_alone(tmp_path, monkeypatch):
    run = trainer(tmp_path, model=model(mem_len=0), carry_memory=False)
    calls = watch(run.model, monkeypatch)
    run.train()
    assert all(given is None for given, _ in calls)


def test_an_evaluation_has_a_memory_of_its_own(tmp_path, monkeypatch):
    run = trainer(tmp_path, max_steps=2, eval_steps=1, eval_dataset=streams())
    calls = watch(run.model, monkeypatch)
    run.train()
    assert len(calls) == 2 + 2 * STEPS_AN_EPOCH
    first, second = calls[0], calls[1 + STEPS_AN_EPOCH]
    assert same(second[0], first[1])
    for begin in (1, 2 + STEPS_AN_EPOCH):
        assert calls[begin][0] is None
        assert same(calls[begin + 1][0], calls[begin][1])


@pytest.mark.parametrize("seq_len", [1, 5, 8, 20])
@pytest.mark.parametrize("cutoffs", [[], [10, 20]], ids=["one softmax", "clusters"])
def test_no_target_is_lost_where_segments_meet(tmp_path, seq_len, cutoffs):
    """With a memory of the whole stream a text in segments has the loss of the text in one."""
    whole = model(mem_len=STREAM, cutoffs=cutoffs, div_val=1).eval()
    run = trainer(tmp_path, model=whole, eval_dataset=streams(seq_len))
    metrics = run.evaluate()
    with torch.no_grad():
        total, count, _ = sums(whole, collate(streams(STREAM).__getitems__(range(ROWS))), None)
    assert count == ROWS * STREAM - 1
    assert math.isclose(metrics["eval_loss"], float(total) / count, rel_tol=1e-5)
    assert math.isclose(metrics["eval_perplexity"], math.exp(metrics["eval_loss"]))


def sums(module: Any, batch: dict[str, Tensor], memory: Any) -> tuple[Tensor, int, Any]:
    """Loss and number of targets by the probabilities of every id."""
    outputs = module(input_ids=batch["input_ids"], mems=memory, return_dict=True)
    scores = outputs.prediction_scores.double()
    assert torch.allclose(scores.exp().sum(-1), torch.ones((), dtype=torch.double), atol=1e-5)
    labels = batch["labels"]
    picked = scores.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    counted = labels != -100
    return -picked[counted].sum(), int(counted.sum()), outputs.mems


def by_hand(updates: list[list[int]]) -> TransfoXLLMHeadModel:
    """The weights after updates, each of them the mean over the targets of some steps' batches."""
    module, data, memory = model().train(), streams(), None
    for steps in updates:
        total, count = torch.zeros(()), 0
        for step in steps:
            items = data.__getitems__(range(step * ROWS, (step + 1) * ROWS))
            more, targets, memory = sums(module, collate(items), memory if step else None)
            memory = [layer.detach() for layer in memory]
            total, count = total + more, count + targets
        (total / count).backward()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.grad is not None:
                    parameter -= 0.5 * parameter.grad
                parameter.grad = None
    return module


@pytest.mark.parametrize(
    ("accumulation", "updates"),
    [(1, [[0], [1], [2]]), (2, [[0, 1], [2]]), (3, [[0, 1, 2], [0, 1, 2]])],
    ids=str,
)
def test_an_update_is_the_mean_over_the_targets_of_all_its_batches(tmp_path, accumulation, updates):
    """Segments differ in length, so the mean of their means would be another."""
    run = trainer(tmp_path, max_steps=len(updates), gradient_accumulation_steps=accumulation)
    run.train()
    expected = by_hand(updates)
    for (name, ours), theirs in zip(
        run.model.named_parameters(), expected.parameters(), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-5), name


def test_a_loss_does_not_depend_on_how_an_update_is_divided(tmp_path):
    """Two segments of 8 tokens an update, or one of 16, with room in memory for the first."""
    logged = []
    for seq_len, accumulation in ((8, 2), (16, 1), (4, 4)):
        run = trainer(
            tmp_path, max_steps=1, train_dataset=streams(seq_len), model=model(mem_len=16),
            gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        run.train()
        logged.append(run.state.log_history[0]["loss"])
    assert np.allclose(logged, logged[0], rtol=1e-5)


def test_labels_that_are_shifted_already_count_the_last_token_too():
    """In float64, as some CPUs round products of other numbers of rows in another way."""
    batch, module = collate(streams().__getitems__(range(ROWS))), model().eval().double()
    ids, behind = batch["input_ids"], batch["labels"]
    labels = torch.cat([torch.full((ROWS, 1), -100), behind[:, :-1]], dim=1)
    with torch.no_grad():
        inside = module(ids, labels=labels)
        whole = module(ids, targets=behind)
    assert whole.losses.shape == (ROWS, LENGTH)
    assert whole.losses.dtype == torch.float64
    assert torch.equal(whole.losses[:, :-1].float(), inside.losses.float())
    assert torch.allclose(whole.loss, whole.losses.mean())
    assert (whole.losses[:, -1] > 0).all()
    with pytest.raises(ArgumentError, match="give one of labels and targets"):
        module(ids, labels=labels, targets=behind)
    with pytest.raises(ArgumentError, match=r"targets have shape \(2, 7\), expected \(2, 8\)"):
        module(ids, targets=behind[:, 1:])
