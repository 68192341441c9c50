"""Parameters that a step leaves out, under DistributedDataParallel and without it."""

from __future__ import annotations

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from transformers import XLNetConfig, XLNetForSequenceClassification, XLNetLMHeadModel

import xlnet_fast

SHAPE = {"vocab_size": 16, "d_model": 8, "n_head": 2, "d_inner": 8}
IDS = torch.arange(18).view(2, 9) % 10
LEFT_OUT = ("mask_emb", "r_s_bias", "seg_embed")


@pytest.fixture
def one_process(tmp_path):
    """A group of this process alone: DDP waits for every gradient in it, too."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


def make(kind=XLNetForSequenceClassification, layers=2):
    torch.manual_seed(0)
    config = XLNetConfig(**SHAPE, n_layer=layers, dropout=0.0, summary_last_dropout=0.0)
    return xlnet_fast.accelerate(kind(config).train())


def step(model, **inputs):
    model.zero_grad()
    model(input_ids=IDS, labels=torch.tensor([0, 1]), **inputs).loss.backward()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("reentrant", [None, False, True])
def test_ddp_gets_a_zero_gradient_of_what_is_left_out(reentrant):
    model, alone = make(), make()
    if reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.transformer.mask_emb.data[0, 0, 0] = float("inf")  # not 0 times it
    wrapped = DistributedDataParallel(model)
    for _ in range(2):
        step(wrapped)
    step(alone)
    for (name, parameter), (_, expected) in zip(
        model.named_parameters(), alone.named_parameters(), strict=True
    ):
        if name.endswith(LEFT_OUT):
            assert parameter.grad is not None
            assert not parameter.grad.any()
            assert expected.grad is None, "weight decay would take it"
        else:
            torch.testing.assert_close(parameter.grad, expected.grad)


@pytest.mark.usefixtures("one_process")
def test_ddp_with_segments_and_targets_now_and_then():
    model = make(XLNetLMHeadModel)
    wrapped = DistributedDataParallel(model)
    mapping = torch.zeros(2, 1, 9)
    mapping[:, 0, -1] = 1
    for targets in (False, True, False, True):
        model.zero_grad()
        inputs = {"target_mapping": mapping, "token_type_ids": IDS % 2} if targets else {}
        wrapped(input_ids=IDS, **inputs).logits.sum().backward()
        for name, parameter in model.named_parameters():
            if name.endswith(LEFT_OUT):
                assert bool(parameter.grad.any()) is targets, name


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("option", ["find_unused_parameters", "static_graph"])
def test_ddp_that_looks_for_them_finds_none(option):
    model = make()
    wrapped = DistributedDataParallel(model, **{option: True})
    for _ in range(2):
        step(wrapped)
    gradients = {n: p.grad for n, p in model.named_parameters() if n.endswith(LEFT_OUT)}
    assert all(gradient is None or not gradient.any() for gradient in gradients.values())
    step(model)
    assert model.transformer.mask_emb.grad is None


@pytest.mark.usefixtures("one_process")
def test_what_is_frozen_stays_so():
    model = make()
    model.transformer.requires_grad_(False)
    wrapped = DistributedDataParallel(model)
    for _ in range(2):
        step(wrapped)
    assert model.transformer.mask_emb.grad is None
    model.eval()
    with torch.no_grad():
        wrapped(input_ids=IDS)
