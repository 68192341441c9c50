"""int8 exports against torchao's int8, whose arithmetic they have."""

from __future__ import annotations

import copy

import torch
from hf_parity import accelerated, padding, random_ids, tiny_model
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
from transformers import XLNetForSequenceClassification

import xlnet_fast
from xlnet_fast.export import int8, load_int8

BATCH, LENGTH = 64, 5
INPUTS = {
    "input_ids": random_ids(BATCH, LENGTH),
    "attention_mask": padding(4, LENGTH, "left").repeat(BATCH // 4, 1),
}


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(**INPUTS).logits


def test_as_torchao(tmp_path):
    """Quantising changes as much: only its unit differs, 1 / 127.5 of the largest value."""
    plain = tiny_model(XLNetForSequenceClassification, d_model=64, d_inner=128, n_head=4)
    unquantised = logits(plain)
    theirs = xlnet_fast.linear_attention(accelerated(copy.deepcopy(plain)))
    layers = theirs.transformer.layer
    quantize_(layers, Int8DynamicActivationInt8WeightConfig())
    name = XLNetForSequenceClassification.__name__
    int8.write(int8.quantise(accelerated(plain)), name, tmp_path)
    found, expected = logits(load_int8(tmp_path)), logits(theirs)
    ours, torchaos = ((x - unquantised).norm() / unquantised.norm() for x in (found, expected))
    assert 1e-4 < ours < 1.2 * torchaos
    assert torchaos < 0.05
