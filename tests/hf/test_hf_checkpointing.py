"""Activation checkpointing, which HF's XLNet refuses: the same gradients, with less kept."""

from __future__ import annotations

import pytest
import torch
from hf_parity import (
    F64,
    accelerated,
    assert_tight,
    one_hot_targets,
    random_ids,
    random_mems,
    run,
    tiny_model,
)
from transformers import PreTrainedModel, XLNetLMHeadModel

import xlnet_fast

# The older names of these methods, which every supported version of transformers knows.
pytestmark = pytest.mark.filterwarnings("ignore:.*checkpointing.* is deprecated:FutureWarning")

BATCH, LENGTH = 2, 6
EVERY_N_LAYERS = pytest.mark.skipif(
    not hasattr(PreTrainedModel, "activation_checkpointing_enable"),
    reason="this version of transformers has no every_n_layers",
)


def inputs_of(streams):
    inputs = {"input_ids": random_ids(BATCH, LENGTH), "labels": random_ids(BATCH, LENGTH, 1)}
    inputs["mems"] = [m.double() for m in random_mems(BATCH, 2)]
    if streams == 2:
        inputs["perm_mask"] = torch.ones(BATCH, LENGTH, LENGTH, dtype=F64).triu()
        inputs["target_mapping"] = one_hot_targets([[0, 3], [5, 2]], LENGTH).double()
        inputs["labels"] = random_ids(BATCH, 2)
    return inputs


def enable(model, **options):
    """Under the name of this version of transformers."""
    if "every_n_layers" in options:
        model.activation_checkpointing_enable(
            {"use_reentrant": options["use_reentrant"]}, every_n_layers=options["every_n_layers"]
        )
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def test_hugging_face_refuses():
    with pytest.raises(ValueError, match="does not support"):
        tiny_model(XLNetLMHeadModel).gradient_checkpointing_enable()


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize(
    "every_n_layers", [None, *(pytest.param(n, marks=EVERY_N_LAYERS) for n in (1, 2))]
)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_same_gradients(streams, use_reentrant, every_n_layers, dropout):
    model = tiny_model(XLNetLMHeadModel, F64, dropout=dropout)
    plain = accelerated(model).train()
    checkpointed = accelerated(model).train()
    options = {"use_reentrant": use_reentrant}
    if every_n_layers is not None:
        options["every_n_layers"] = every_n_layers
    enable(checkpointed, **options)
    assert checkpointed.is_gradient_checkpointing
    layers = [layer.gradient_checkpointing for layer in checkpointed.transformer.layer]
    assert layers == [True, every_n_layers != 2]
    results = []
    for candidate in (checkpointed, plain):
        torch.manual_seed(3)
        results.append(run(candidate, inputs_of(streams)))
    assert_tight(*results)


@EVERY_N_LAYERS
@pytest.mark.parametrize("every_n_layers", [1, 2])
def test_layers_run_again_in_the_backward_pass(every_n_layers):
    model = accelerated(tiny_model(XLNetLMHeadModel)).train()
    enable(model, use_reentrant=False, every_n_layers=every_n_layers)
    calls = [0, 0]
    for number, layer in enumerate(model.transformer.layer):

        def count(module, arguments, number=number):
            calls[number] += 1

        layer.rel_attn.register_forward_pre_hook(count)
    loss = model(random_ids(BATCH, LENGTH), labels=random_ids(BATCH, LENGTH)).loss
    assert calls == [1, 1]
    loss.backward()
    assert calls == ([2, 2] if every_n_layers == 1 else [2, 1])


def test_disabling_and_evaluation():
    model = accelerated(tiny_model(XLNetLMHeadModel)).train()
    model.gradient_checkpointing_enable()
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    model.gradient_checkpointing_enable()
    expected = accelerated(tiny_model(XLNetLMHeadModel))(random_ids(2, 5)).logits
    assert torch.equal(model.eval()(random_ids(2, 5)).logits, expected)


def test_restore_ends_it():
    model = tiny_model(XLNetLMHeadModel)
    before = [set(vars(module)) for module in model.modules()]
    xlnet_fast.accelerate(model).gradient_checkpointing_enable()
    xlnet_fast.restore(model)
    # HF's own hook on the embeddings outlives gradient_checkpointing_disable(), too.
    hooks = {"_require_grads_hook", "_require_grads_hooks"}
    assert [set(vars(module)) - hooks for module in model.modules()] == before
    assert not model.is_gradient_checkpointing
    with pytest.raises(ValueError, match="does not support"):
        model.gradient_checkpointing_enable()
