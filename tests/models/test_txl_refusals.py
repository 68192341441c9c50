"""What our Transformer-XL refuses, each in one sentence."""

from __future__ import annotations

import re

import pytest
import torch
from txl_parity import F64, ids, model_of, recipe

from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.models.transfo_xl import (
    TransfoXLConfig,
    TransfoXLForSequenceClassification,
    TransfoXLLMHeadModel,
)

CONFIGS = {
    "attn_type 1": ({"attn_type": 1}, "attn_type is 1, expected 0"),
    "attn_type 3": ({"attn_type": 3}, "attn_type is 3, expected 0"),
    "sample_softmax": ({"sample_softmax": 10}, "sample_softmax is 10, expected -1"),
    "equal cutoffs": ({"cutoffs": [20, 20]}, "cutoffs"),
    "falling cutoffs": ({"cutoffs": [40, 20]}, r"cutoffs is \[40, 20\], expected increasing"),
    "a cutoff of all words": ({"cutoffs": [20, 60]}, "between 0 and vocab_size = 60"),
    "a cutoff beyond": ({"cutoffs": [20, 90]}, "between 0 and vocab_size = 60"),
    "a cutoff of 0": ({"cutoffs": [0, 20]}, "between 0 and"),
    "no width": ({"div_val": 8}, "div_val is 8"),
    "no div_val": ({"div_val": 0}, "div_val is 0"),
    "odd d_model": ({"d_model": 31}, "d_model is 31, expected an even number"),
    "memory of ones": ({"initial_memory": "ones"}, "initial_memory is 'ones', expected one of"),
    "negative mem_len": ({"mem_len": -1}, "mem_len is -1"),
    "init": ({"init": "zeros"}, "init is 'zeros'"),
    "no heads": ({"n_head": 0}, "n_head is 0"),
    "no memory": ({"mem_len": 0}, "same_length needs mem_len >= 1"),
    "words for a number": ({"vocab_size": "60"}, "vocab_size is '60', expected at least 1"),
    "cutoffs of words": ({"cutoffs": ["20"]}, r"cutoffs is \['20'\], expected increasing"),
    "no sampled softmax": ({"sample_softmax": None}, "sample_softmax is None, expected -1"),
    "a dropout above 1": ({"dropout": 1.5}, "dropout is 1.5, expected a number from 0 to 1"),
    "a dropout that is no number": ({"dropatt": float("nan")}, "dropatt is nan, expected a number"),
    "no epsilon": ({"layer_norm_epsilon": None}, "layer_norm_epsilon is None, expected a number"),
    "a negative width of random weights": ({"init_std": -0.1}, "init_std is -0.1, expected a num"),
    "a switch of words": ({"same_length": "no"}, "same_length is 'no', expected true or false"),
    "neither tied nor not": (
        {"tie_word_embeddings": None},
        "tie_word_embeddings is None, expected",
    ),
    "padding of words": ({"pad_token_id": "<eos>"}, "pad_token_id is '<eos>', expected a word's"),
    "no list of tied projections": ({"tie_projs": None}, "tie_projs is None, expected 3 of them"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_configuration_that_is_no_model(case):
    options, words = CONFIGS[case]
    with pytest.raises(ArgumentError, match=words) as told:
        TransfoXLLMHeadModel(TransfoXLConfig(**{**recipe.config_of("default"), **options}))
    assert "\n" not in str(told.value)


def test_a_memory_of_no_row_is_refused_later_too():
    model = model_of()
    with pytest.raises(ArgumentError, match="same_length needs mem_len >= 1"):
        model.reset_memory_length(0)
    model.transformer.mem_len = 0
    with pytest.raises(ArgumentError, match="same_length needs mem_len >= 1"):
        model(ids("text", 1, 3))


CALLS = {
    "nothing": (lambda: {}, "give one of input_ids and inputs_embeds"),
    "both": (
        lambda: {"input_ids": ids("a", 1, 4), "inputs_embeds": torch.zeros(1, 4, 32, dtype=F64)},
        "give one of",
    ),
    "a word too large": (lambda: {"input_ids": torch.tensor([[1, 60]])}, "has the word 60"),
    "a negative word": (lambda: {"input_ids": torch.tensor([[-1, 6]])}, "has the word -1"),
    "a label too large": (
        lambda: {"input_ids": ids("a", 1, 4), "labels": torch.tensor([[1, 2, 60, 3]])},
        "labels has the word 60, expected 0 to 59 or -100",
    ),
    "a negative label": (
        lambda: {"input_ids": ids("a", 1, 4), "labels": torch.tensor([[1, 2, -1, 3]])},
        "labels has the word -1",
    ),
    "labels of another length": (
        lambda: {"input_ids": ids("a", 1, 4), "labels": ids("a", 1, 5)}, r"\(1, 5\)",
    ),
    "narrow embeddings": (lambda: {"inputs_embeds": torch.zeros(1, 4, 30, dtype=F64)}, "30"),
    "no token": (lambda: {"input_ids": ids("a", 1, 0)}, r"I >= 1"),
    "heads": (
        lambda: {"input_ids": ids("a", 1, 4), "head_mask": torch.ones(3)}, r"head_mask has shape",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
@pytest.mark.parametrize("name", ["default", "div_val 1"])
def test_a_call_that_means_nothing(case, name):
    make, words = CALLS[case]
    with pytest.raises(ArgumentError, match=words) as told:
        model_of(name)(**make())
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda mems: mems[:1], "mems has 1 tensors, expected 2"),
        (lambda mems: [x[:, :1] for x in mems], r"mems\[0\] has shape \(12, 1, 32\)"),
        (lambda mems: [x[..., :8] for x in mems], r"expected \(12, 2, 32\)"),
        (lambda mems: [mems[0], mems[1][:5]], r"mems\[1\] has shape \(5, 2, 32\)"),
    ],
)
@pytest.mark.parametrize("use_cache", [False, True])
def test_a_memory_of_another_text(change, words, use_cache):
    model, given = model_of(), ids("text", 2, 5)
    with torch.no_grad():
        mems = model(given, use_cache=use_cache).mems
        with pytest.raises(ShapeError, match=words):
            model(given, mems=change(mems))


def test_a_memory_kept_for_another_batch():
    model = model_of()
    with torch.no_grad():
        mems = model(ids("text", 2, 5), use_cache=True).mems
        with pytest.raises(ShapeError, match="another batch"):
            model(ids("text", 3, 5), mems=mems)


def test_texts_of_a_class_need_their_ends():
    model = model_of(cls=TransfoXLForSequenceClassification, num_labels=3)
    with pytest.raises(ArgumentError, match=r"attention_mask or config\.pad_token_id"):
        model(ids("text", 2, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoffs": 20}, "cutoffs is 20, expected a list"),
        ({"cutoffs": None}, "cutoffs is None, expected a list"),
        ({"clamp_len": 1.5}, "clamp_len is 1.5, expected a whole number"),
    ],
)
def test_options_of_other_types_are_refused(options, message):
    with pytest.raises(ArgumentError, match=re.escape(message)):
        TransfoXLConfig(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {"input_ids": x[0]}, "input_ids has shape (6,), expected (B, I)"),
        (lambda x: {"input_ids": x.tolist()}, "input_ids is list, expected a tensor"),
        (lambda x: {"inputs_embeds": [1.0]}, "inputs_embeds is list, expected a tensor"),
        (lambda x: {"input_ids": x.float()}, "input_ids has dtype torch.float32"),
        (lambda x: {"input_ids": x, "labels": x.float()}, "labels has dtype torch.float32"),
        (lambda x: {"input_ids": x, "mems": [None, None]}, "mems is list, expected a list of one"),
        (lambda x: {"input_ids": x, "mems": (y for y in x)}, "mems is generator, expected"),
    ],
)
def test_arguments_of_other_types_are_refused(change, message):
    with pytest.raises(ArgumentError, match=re.escape(message)):
        model_of()(**change(ids("types", 2, 6)))
