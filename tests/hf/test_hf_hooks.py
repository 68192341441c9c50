"""Hooks on every module see what they see in Hugging Face's model, but for listed arguments."""

from __future__ import annotations

import pytest
import torch
from hf_parity import (
    F64,
    accelerated,
    assert_tight,
    flatten,
    hf_in,
    one_hot_targets,
    padding,
    random_ids,
    tiny_model,
)
from transformers import XLNetForSequenceClassification

BATCH, LENGTH = 2, 5
OF_OUR_OWN = ("attn_mask_h", "attn_mask_g", "r", "seg_mat", "target_mapping")
"""What a layer and its attention take in another form (docs/differences.md)."""
POSITIONS_OF_THEM = (2, 3, 4, 5)


def watch(model):
    """Forward and backward hooks on all modules; what they will have seen, by module and call."""
    seen = {}

    def note(kind, name, value):
        calls = sum(key.startswith(f"{kind} {name} ") for key in seen)
        seen[f"{kind} {name} {calls}"] = flatten(value)

    def forward_hook(name):
        def hook(module, args, kwargs, output):
            if name.endswith("rel_attn"):
                args = [x for number, x in enumerate(args) if number not in POSITIONS_OF_THEM]
            kwargs = {key: x for key, x in kwargs.items() if key not in OF_OUR_OWN}
            tensors = {key: x for key, x in kwargs.items() if isinstance(x, torch.Tensor)}
            note("forward", name, [list(args), tensors, output])

        return hook

    def backward_hook(name):
        return lambda module, of_inputs, of_outputs: note("backward", name, of_outputs)

    for name, module in model.named_modules():
        module.register_forward_hook(forward_hook(name), with_kwargs=True)
        module.register_full_backward_hook(backward_hook(name))
    return seen


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("streams", [1, 2])
def test_hooks_on_every_module(streams, training):
    inputs = {"input_ids": random_ids(BATCH, LENGTH), "labels": torch.tensor([0, 1])}
    inputs |= {"attention_mask": padding(BATCH, LENGTH, "left"), "return_dict": False}
    if streams == 2:
        inputs["target_mapping"] = one_hot_targets([[4, 0], [1, 2]], LENGTH).double()
        inputs["perm_mask"] = torch.ones(BATCH, LENGTH, LENGTH, dtype=F64).triu()
    model = tiny_model(XLNetForSequenceClassification, F64)
    results = []
    for each in (hf_in(accelerated(model), F64), hf_in(model, F64)):
        seen = watch(each.train(training))
        each(**inputs)[0].backward()
        results.append(seen)
    ours, theirs = results
    assert ours.keys() == theirs.keys()
    assert any(key.startswith("backward transformer.layer.1.rel_attn.dropout") for key in ours)
    for key, values in ours.items():
        assert_tight(values, theirs[key], key)
