"""torchao's int8 on an accelerated model: HF's values where HF is quantised alike."""

from __future__ import annotations

import copy

import pytest
import torch
from hf_parity import accelerated, padding, random_ids, tiny_model, transformer_of
from torch import nn
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    quantize_,
)
from transformers import XLNetForSequenceClassification

import xlnet_fast
from xlnet_fast.hf.families.xlnet.projections import PROJECTIONS

BATCH, LENGTH = 64, 5
INPUTS = {
    "input_ids": random_ids(BATCH, LENGTH),
    "attention_mask": padding(4, LENGTH, "left").repeat(BATCH // 4, 1),
}
CONFIGS = [Int8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig]


def plain_model():
    return tiny_model(XLNetForSequenceClassification, d_model=64, d_inner=128, n_head=4)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(**INPUTS).logits


def assert_near(found, expected, unquantised) -> None:
    """Apart by little of what quantising changes, for most: where an activation lies between two
    of the 256 values, the last bit of it decides, and what follows goes another way.
    """
    changed = (expected - unquantised).abs().median()
    assert changed > 1e-4
    assert (found - expected).abs().median() < 0.05 * changed


def is_quantised(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(module, nn.Linear) and type(weight) not in (torch.Tensor, nn.Parameter)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("early", [True, False])
def test_quantised_as_hugging_face(config, early):
    plain = plain_model()
    ours = copy.deepcopy(plain) if early else accelerated(plain)
    unquantised = logits(plain)
    quantize_(plain, config())
    quantize_(ours, config())
    if early:
        xlnet_fast.accelerate(ours)
    count = sum(map(is_quantised, ours.modules()))
    assert count == sum(map(is_quantised, plain.modules())) >= 4
    expected = logits(plain)
    assert_near(logits(ours), expected, unquantised)


def test_weights_of_attention_are_quantised_too():
    """The truth is HF with the weights that int8 stands for."""
    plain = plain_model()
    unquantised = logits(plain)
    ours = xlnet_fast.linear_attention(accelerated(plain))
    quantize_(ours, Int8WeightOnlyConfig())
    projections = [
        getattr(layer.rel_attn, name)
        for layer in transformer_of(ours).layer
        for name in PROJECTIONS
    ]
    assert all(map(is_quantised, projections))
    for name, module in ours.named_modules():
        if not is_quantised(module):
            continue
        weight = module.weight.dequantize()
        owner = plain.get_submodule(name.rpartition(".")[0])
        if isinstance(getattr(owner, name.rpartition(".")[2]), nn.Linear):
            getattr(owner, name.rpartition(".")[2]).weight.data = weight
            continue
        parameter = getattr(owner, name[-1])
        weight = weight if name.endswith(".o") else weight.t()
        parameter.data = weight.reshape(parameter.shape)
    expected = logits(plain)
    assert_near(logits(ours), expected, unquantised)
    with pytest.raises(xlnet_fast.ArgumentError, match="no plain parameter"):
        xlnet_fast.restore(ours)


def test_products_of_attention_in_int8():
    """Each projection gives what int8 gives on what it is handed: they are all called."""
    plain = plain_model()
    ours = xlnet_fast.linear_attention(accelerated(plain))
    alone = copy.deepcopy(ours)
    quantize_(ours, Int8DynamicActivationInt8WeightConfig())
    seen = []
    for layer, whole in zip(transformer_of(ours).layer, transformer_of(alone).layer, strict=True):
        for name in PROJECTIONS:
            exact = getattr(whole.rel_attn, name)
            getattr(layer.rel_attn, name).register_forward_hook(
                lambda _, given, out, exact=exact: seen.append(
                    (out - exact(given[0])).norm() / out.norm()
                )
            )
    error = (logits(ours) - logits(plain)).norm() / logits(plain).norm()
    assert len(seen) == 2 * len(PROJECTIONS)
    assert all(0 < share < 0.02 for share in seen)  # 8 bits: 1 / 127 of the largest value
    assert 0 < error < 0.05
