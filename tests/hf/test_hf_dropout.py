"""Dropout in training: exact against HF under the same masks, and the same distribution without.

HF and ours draw in another order, so equality needs the masks of one run replayed in the other.
Pointwise masks are recorded in order; those of the probabilities follow from the recorded seeds by
``philox.keep_mask``, whose value is the same on every backend.
"""

from __future__ import annotations

import copy

import pytest
import torch
from cpu_kernels import ON_CPU, needs_kernels
from hf_parity import (
    F64,
    accelerated,
    assert_tight,
    hf_in,
    in_dtype,
    one_hot_targets,
    padding,
    random_ids,
    random_mems,
    run,
    tiny_model,
)
from torch import nn
from torch.nn import functional as F
from transformers import XLNetForSequenceClassification, XLNetLMHeadModel

from xlnet_fast.nn.rel_attention import RelativeAttentionCore
from xlnet_fast.philox import keep_mask

BATCH, LENGTH, P = 2, 5, 0.3


class Tape:
    """Masks and seeds of one forward pass of ours, in the order of their use."""

    def __init__(self) -> None:
        self.masks: list[torch.Tensor] = []
        self.seeds: list[tuple[torch.Tensor, int]] = []

    def __deepcopy__(self, memo):
        """Copies of a model write on the same tape."""
        return self

    def dropout(self, x, p=0.5, training=True, inplace=False):
        """In the place of ``F.dropout``: another module in that of nn.Dropout would be called."""
        if not training:
            return x
        mask = (torch.rand(x.shape) >= p).double() / (1 - p)
        self.masks.append(mask)
        return x * mask


class ReplayingDropout(nn.Dropout):
    """HF's: takes pointwise masks from the tape and makes those of probabilities from its seeds."""

    tape: Tape
    rows: dict[int, torch.Tensor]

    def forward(self, x):
        if not self.training:
            return x
        if x.dim() != 4:
            return x * self.tape.masks.pop(0)
        seed, stream = self.tape.seeds.pop(0)
        batch, heads, queries, keys = x.shape
        positions = self.rows.get(stream)
        if positions is None:
            keep = keep_mask(seed, self.p, batch, heads, (0, queries), keys)
        else:  # rows of the query stream are numbered by target, HF's by position
            rows = keep_mask(seed, self.p, batch, heads, (0, positions.shape[1]), keys)
            keep = torch.ones(x.shape, dtype=torch.bool)
            for b, row in enumerate(positions.tolist()):
                for m, position in enumerate(row):
                    if position >= 0:
                        keep[b, :, position] = rows[b, :, m]
        return x * keep.double() / (1 - self.p)


def with_dropout(model, kind, tape, **attributes):
    """A copy in training whose dropout modules are of another kind."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Dropout):
                replacement = kind(P)
                replacement.tape = tape
                for key, value in attributes.items():
                    setattr(replacement, key, value)
                setattr(parent, name, replacement)
    return model.train()


def run_both(model, inputs, monkeypatch, positions=None, **options):
    """Results of ours, recorded, and of HF, replayed."""
    tape = Tape()
    draw = RelativeAttentionCore._dropout

    def record(self, like):
        p, seed = draw(self, like)
        tape.seeds.append((seed, 0))
        if "target_mapping" in inputs:
            tape.seeds.append((seed + 1, 1))
        return p, seed

    ours = accelerated(model, **options).train()
    with monkeypatch.context() as patch:
        patch.setattr(F, "dropout", tape.dropout)
        patch.setattr(RelativeAttentionCore, "_dropout", record)
        actual = run(ours, inputs)
    rows = {} if positions is None else {1: positions}
    oracle = hf_in(with_dropout(model, ReplayingDropout, tape, rows=rows), F64)
    expected = run(oracle, inputs)
    assert not tape.masks
    assert not tape.seeds
    return actual, expected


KINDS = ["one stream", "compact", "dense", "attentions", "attentions, two streams"]


@pytest.mark.parametrize("exact_dropout", [False, True])
@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_under_the_same_masks(kind, backend, exact_dropout, monkeypatch):
    cls = XLNetForSequenceClassification if kind == "one stream" else XLNetLMHeadModel
    model = tiny_model(cls, F64, dropout=P, summary_last_dropout=P)
    inputs = {
        "input_ids": random_ids(BATCH, LENGTH),
        "token_type_ids": random_ids(BATCH, LENGTH, 1) % 2,
        "attention_mask": padding(BATCH, LENGTH, "left"),
        "mems": random_mems(BATCH, 3),
    }
    positions = None
    if kind in ("compact", "dense", "attentions, two streams"):
        mapping = one_hot_targets([[4, 0, -1], [2, 3, 1]], LENGTH)
        inputs["target_mapping"] = 0.5 * mapping if kind == "dense" else mapping
        inputs["perm_mask"] = torch.ones(BATCH, LENGTH, LENGTH).triu()
        positions = torch.tensor([[4, 0, -1], [2, 3, 1]]) if kind == "compact" else None
    inputs["output_attentions"] = kind.startswith("attentions")
    options = {"backend": backend, "exact_dropout": exact_dropout}
    actual, expected = run_both(model, in_dtype(inputs, F64), monkeypatch, positions, **options)
    assert_tight(actual, expected)


@pytest.mark.parametrize("bi_data", [False, True])
def test_exact_dropout_draws_one_table_per_batch_element(bi_data, monkeypatch):
    """By default the batch (or each half of it) shares a table, else each element has its own."""
    shapes = []
    for exact in (False, True):
        tape = Tape()
        model = tiny_model(XLNetLMHeadModel, F64, dropout=P, bi_data=bi_data)
        monkeypatch.setattr(F, "dropout", tape.dropout)
        accelerated(model, exact_dropout=exact).train()(random_ids(4, LENGTH))
        shapes.append([tuple(mask.shape) for mask in tape.masks if mask.shape[0] == 2 * LENGTH])
    shared = 2 if bi_data else 1
    assert shapes == [[(2 * LENGTH, shared, 16)], [(2 * LENGTH, 4, 16)]]


DRAWS = 300


def draws_of(model, ids):
    """Outputs of many training passes over a batch of two equal texts, (DRAWS, B, I * H)."""
    with torch.no_grad():
        return torch.stack([model(ids)[0].flatten(1) for _ in range(DRAWS)])


@pytest.fixture(scope="module")
def hugging_faces_draws():
    torch.manual_seed(5)
    model = tiny_model(dropout=P).train()
    ids = random_ids(1, LENGTH).repeat(2, 1)
    return model, ids, draws_of(model, ids)


@pytest.mark.parametrize(
    ("backend", "exact_dropout"),
    [
        pytest.param("cpu", False, marks=needs_kernels),
        ("sdpa", False),
        ("sdpa", True),
        ("reference", False),
    ],
)
def test_distribution_of_outputs(hugging_faces_draws, backend, exact_dropout):
    """Mean and variance of every output element, over draws, within sampling error of HF's."""
    model, ids, theirs = hugging_faces_draws
    ours = draws_of(accelerated(model, backend=backend, exact_dropout=exact_dropout).train(), ids)
    deviation = ((theirs.var(0) + ours.var(0)) / DRAWS).sqrt()
    z = ((theirs.mean(0) - ours.mean(0)) / deviation).flatten()
    assert float(z.abs().max()) < 4.5  # 160 elements
    assert 0.6 < float(z.std()) < 1.4
    ratio = (theirs.var(0) / ours.var(0)).log().flatten()
    assert abs(float(ratio.mean())) < 0.1
    assert float(ratio.abs().max()) < 0.75


def test_evaluation_draws_nothing():
    ours = accelerated(tiny_model(dropout=P))
    state = torch.get_rng_state()
    first, second = (ours(random_ids(BATCH, LENGTH))[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("backend", ON_CPU)
def test_a_seed_repeats_a_training_pass(backend):
    ours = accelerated(tiny_model(XLNetLMHeadModel, dropout=P), backend=backend).train()
    inputs = {"input_ids": random_ids(BATCH, LENGTH), "labels": random_ids(BATCH, LENGTH)}
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(run(ours, inputs))
    assert_tight(runs[0], runs[1])
    assert not torch.equal(runs[0]["logits"], runs[2]["logits"])


def test_attention_dropout_alone_follows_its_own_module():
    """A user may freeze one layer's dropout: its mode counts, not the model's."""
    ours = accelerated(tiny_model(dropout=P)).train()
    for module in ours.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    first, second = (ours(random_ids(BATCH, LENGTH))[0] for _ in range(2))
    assert torch.equal(first, second)
