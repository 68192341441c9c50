"""Arguments with every class: those of ours, those of a batch of one, and unknown ones."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
from hf_parity import (
    CLASSES,
    F64,
    LAYERS,
    VOCABULARY,
    accelerated,
    assert_tight,
    hf_in,
    in_dtype,
    one_hot_targets,
    padding,
    random_ids,
    random_mems,
    run,
    tiny_config,
    tiny_model,
)
from torch import nn
from transformers import (
    XLNetForMultipleChoice,
    XLNetForQuestionAnswering,
    XLNetForTokenClassification,
    XLNetModel,
)
from transformers.models.xlnet.modeling_xlnet import XLNetLayer

import xlnet_fast
from xlnet_fast import ArgumentError, ShapeError
from xlnet_fast.hf.families.xlnet import heads
from xlnet_fast.hf.families.xlnet import inputs as inputs_module

BATCH, LENGTH, HEADS = 2, 6, 2
RANKS = torch.tensor([[3, 0, 5, 1, 4, 2], [0, 1, 2, 3, 4, 5]])
POSITIONS = [[5, 0], [1, 3]]


def compact() -> dict:
    return {
        "permutation_ranks": (RANKS, RANKS),
        "target_positions": torch.tensor(POSITIONS),
    }


def dense() -> dict:
    hidden = RANKS[:, :, None] <= RANKS[:, None, :]
    return {
        "perm_mask": hidden.to(F64),
        "target_mapping": one_hot_targets(POSITIONS, LENGTH).double(),
    }


def inputs_for(cls) -> dict:
    ids = random_ids(BATCH, LENGTH)
    return {"input_ids": ids[:, None] if cls is XLNetForMultipleChoice else ids}


@pytest.mark.parametrize("cls", CLASSES)
def test_compact_arguments_with_every_class(cls):
    model = tiny_model(cls, F64)
    inputs = inputs_for(cls)
    results = run(accelerated(model), inputs | compact())
    expected = run(hf_in(model, F64), inputs | dense())
    assert_tight(results, expected)
    with pytest.raises(AssertionError):  # or they would do nothing
        assert_tight(results, run(hf_in(model, F64), inputs))


@pytest.mark.parametrize("return_dict", [True, False])
@pytest.mark.parametrize("labels", [True, False])
def test_token_classification_is_hugging_faces(labels, return_dict):
    model = tiny_model(XLNetForTokenClassification, F64)
    inputs = inputs_for(XLNetForTokenClassification)
    inputs["attention_mask"] = padding(BATCH, LENGTH, "left")
    everything = {"output_attentions": True, "output_hidden_states": True, "use_mems": True}
    if labels:
        inputs["labels"] = random_ids(BATCH, LENGTH) % 2
        inputs["labels"][0, :2] = -100
    theirs, ours = (m(**inputs, **everything, return_dict=return_dict)
                    for m in (model, accelerated(model)))  # fmt: skip
    assert type(ours) is type(theirs)
    assert len(ours) == len(theirs)
    if return_dict:
        assert list(ours) == list(theirs)
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-12, rtol=0)
    assert_tight(run(accelerated(model), inputs), run(hf_in(model, F64), inputs))


def test_the_arguments_of_token_classification_are_hugging_faces():
    named = set(inspect.signature(XLNetForTokenClassification.forward).parameters)
    assert named - {"self", "kwargs"} == heads._OF_TOKEN_CLASSIFICATION


def test_token_classification_keeps_a_users_forward_and_name(monkeypatch):
    model = tiny_model(XLNetForTokenClassification, F64)
    ours = accelerated(model)
    assert type(ours).__name__ == "XLNetForTokenClassification"
    assert type(xlnet_fast.restore(accelerated(model))) is XLNetForTokenClassification
    forward, seen = XLNetForTokenClassification.forward, []

    def patch(self, *args, **kwargs):
        seen.append(sorted(kwargs))
        return forward(self, *args, **kwargs).logits * 2

    monkeypatch.setattr(XLNetForTokenClassification, "forward", patch)
    ids = random_ids(BATCH, LENGTH)
    torch.testing.assert_close(ours(ids, mine=1), model(ids), atol=1e-12, rtol=0)
    assert seen == [["mine"], []]


# ---- a batch of one for all ----


@pytest.mark.parametrize("memory", [0, 3])
@pytest.mark.parametrize("streams", [1, 2])
def test_a_batch_of_one_stands_for_all(streams, memory):
    model = tiny_model(dtype=F64)
    inputs = {"input_ids": random_ids(3, LENGTH)}
    one = {"token_type_ids": random_ids(1, LENGTH) % 2, "perm_mask": dense()["perm_mask"][:1]}
    one["attention_mask"] = padding(1, LENGTH, "left")
    if memory:
        inputs["mems"] = [m.double() for m in random_mems(3, memory)]
    if streams == 2:
        one["target_mapping"] = dense()["target_mapping"][:1]
    ours = accelerated(model)
    expanded = {name: value.expand(3, *value.shape[1:]) for name, value in one.items()}
    expected = run(hf_in(model, F64), inputs | expanded)
    assert_tight(run(ours, inputs | one), expected)
    inverse = {"input_mask": 1 - one.pop("attention_mask")}
    assert_tight(run(ours, inputs | one | inverse), expected)


def test_compact_arguments_of_one_stand_for_all():
    ours = accelerated(tiny_model(dtype=F64))
    ids = random_ids(3, LENGTH)
    one = {"permutation_ranks": (RANKS[:1], RANKS[:1])}
    one["target_positions"] = torch.tensor(POSITIONS[:1])
    ranks = RANKS[:1].expand(3, -1)
    every = {"permutation_ranks": (ranks, ranks)}
    every["target_positions"] = one["target_positions"].expand(3, -1)
    assert torch.equal(ours(ids, **one)[0], ours(ids, **every)[0])


def test_embeddings_of_a_larger_batch_than_the_mask():
    """captum's IntegratedGradients on inputs_embeds hands on the mask of the one example."""
    model = tiny_model(dtype=F64)
    inputs = in_dtype({"inputs_embeds": torch.randn(4, LENGTH, model.d_model)}, F64)
    mask = padding(1, LENGTH, "left")
    expected = run(hf_in(model, F64), inputs | {"attention_mask": mask.expand(4, -1)})
    assert_tight(run(accelerated(model), inputs | {"attention_mask": mask}), expected)


# ---- head_mask, which Hugging Face had before version 5 ----


def masked_by_hand(model, head_mask):
    """HF's model whose heads are multiplied where version 4 did: their columns of the output."""
    model = hf_in(model, F64)
    for layer, mask in zip(model.layer, head_mask.expand(LAYERS, HEADS), strict=True):
        layer.rel_attn.o = nn.Parameter(layer.rel_attn.o.detach() * mask[:, None])
    return model


HEAD_MASKS = {
    "one for all layers": torch.tensor([1.0, 0.0]),
    "one for each": torch.tensor([[0.5, 1.0], [0.0, 2.0]]),
}


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("which", HEAD_MASKS)
def test_head_mask(which, streams):
    model, mask = tiny_model(dtype=F64), HEAD_MASKS[which]
    inputs = inputs_for(XLNetModel) | (dense() if streams == 2 else {})
    expected = run(masked_by_hand(model, mask.double()), inputs, backward=False)
    ours = accelerated(model)
    given = inputs | {"head_mask": mask}
    assert_tight(run(ours, given, backward=False), expected)
    output = ours(**given, output_attentions=True)
    plain = ours(**inputs, output_attentions=True)
    torch.testing.assert_close(output[0], expected["last_hidden_state"], atol=1e-11, rtol=0)
    first, unmasked = output.attentions[0], plain.attentions[0]
    if streams == 2:
        first, unmasked = first[1], unmasked[1]
    weights = mask.expand(LAYERS, HEADS)[0].double()[:, None, None]
    torch.testing.assert_close(first, unmasked * weights, atol=1e-12, rtol=0)


def test_head_mask_has_a_gradient():
    """Which heads matter is read from it."""
    ours = accelerated(tiny_model(XLNetForTokenClassification, F64))
    mask = torch.ones(LAYERS, HEADS, dtype=F64, requires_grad=True)
    inputs = inputs_for(XLNetForTokenClassification) | {"labels": random_ids(BATCH, LENGTH) % 2}
    assert torch.autograd.gradcheck(lambda m: ours(**inputs, head_mask=m).loss, (mask,))


def test_head_mask_of_another_shape():
    ours = accelerated(tiny_model())
    ids = random_ids(BATCH, LENGTH)
    with pytest.raises(ShapeError, match=r"head_mask has shape \(3,\), expected \(2,\)"):
        ours(ids, head_mask=torch.ones(3))
    with pytest.raises(ShapeError, match=r"head_mask has shape \(2, 3\), expected \(2, 2\)"):
        ours(ids, head_mask=torch.ones(2, 3))
    with pytest.raises(ArgumentError, match="head_mask must be a tensor"):
        ours(ids, head_mask=[1, 0])
    assert torch.equal(ours(ids, head_mask=[None, None])[0], ours(ids)[0])


def test_head_mask_that_cannot_reach_a_layer():
    class OwnLayer(XLNetLayer):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    model = tiny_model()
    model.layer[1] = OwnLayer(tiny_config())
    with pytest.raises(ArgumentError, match="head_mask cannot reach layer 1, which runs its own"):
        accelerated(model)(random_ids(BATCH, LENGTH), head_mask=torch.ones(HEADS))


# ---- unknown arguments ----


@pytest.mark.parametrize("cls", CLASSES)
def test_unknown_arguments_are_ignored_with_one_warning(cls, monkeypatch):
    monkeypatch.setattr(inputs_module, "_WARNED_OF", set())
    ours = accelerated(tiny_model(cls))
    inputs = inputs_for(cls)
    expected = ours(**inputs)[0]
    with pytest.warns(UserWarning, match="no argument 'attentionmask', 'whatever'; ignored"):
        output = ours(**inputs, attentionmask=torch.ones(BATCH, LENGTH), whatever=3)
    assert torch.equal(output[0], expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours(**inputs, whatever=3, position_ids=None)


def test_what_transformers_hands_to_every_model_is_no_news(monkeypatch):
    monkeypatch.setattr(inputs_module, "_WARNED_OF", set())
    ours = accelerated(tiny_model())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours(random_ids(1, 3) % VOCABULARY, use_cache=True, num_items_in_batch=torch.tensor(3))


# ---- question answering on short texts ----


@pytest.mark.parametrize("length", [1, 3, 4])
def test_inputs_shorter_than_the_beam_are_tried_at_all_positions(length):
    model = tiny_model(XLNetForQuestionAnswering, F64, start_n_top=4, end_n_top=5)
    ids = random_ids(2, length)
    short = accelerated(model)(ids)
    assert short.start_top_index.shape == (2, length)
    assert short.end_top_index.shape == (2, length * length)
    wide = hf_in(model, F64)
    wide.start_n_top = wide.end_n_top = length
    expected = wide(ids)
    for ours, theirs in zip(short.to_tuple(), expected.to_tuple(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=0)
    if length < 4:
        with pytest.raises(RuntimeError, match="out of range"):
            hf_in(model, F64)(ids)
