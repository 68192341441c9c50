"""Transformer-XL against the recorded values of the last Hugging Face classes there were."""

from __future__ import annotations

import inspect

import pytest
import torch
from txl_parity import (
    F64,
    assert_tight,
    assert_within_recorded,
    close,
    facts,
    model_of,
    recipe,
    recorded,
    under,
)

from xlnet_fast.models.transfo_xl import TransfoXLConfig, TransfoXLForSequenceClassification


def without_errors(values):
    return {key: x for key, x in values.items() if not key.startswith(("errors ", "whole "))}


def test_the_record_is_of_these_options():
    assert facts()["versions"]["transformers"] == "4.37.2"
    assert facts()["base"] == recipe.BASE
    assert facts()["sets"] == recipe.SETS


def test_defaults_of_the_configuration():
    parameters = inspect.signature(TransfoXLConfig).parameters
    ours = {name: parameters[name].default for name in facts()["defaults"]}
    assert {name: list(x) if isinstance(x, tuple) else x for name, x in ours.items()} == facts()[
        "defaults"
    ]


@pytest.mark.parametrize("name", recipe.SETS)
def test_values_and_gradients(name):
    """In float64; the second run, in inference, goes where keys and values are kept."""
    model, expected = model_of(name), without_errors(under(name))
    assert_tight(recipe.digests(recipe.run(model, name)), expected, name)
    values = {key: x for key, x in expected.items() if not key.startswith("d ")}
    with torch.no_grad():
        assert_tight(recipe.digests(recipe.run(model, name)), values, name)


def test_every_score():
    with torch.no_grad():
        scores = recipe.run(model_of(), "default")["scores"]
    close(scores, recorded()["default/whole scores"])
    assert float((scores.exp().sum(-1) - 1).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("name", "word"), [(name, word) for name, words in recipe.PRECISIONS.items() for word in words]
)
def test_errors_of_other_dtypes_are_at_most_twice_as_large(name, word):
    dtype = getattr(torch, word)
    exact = recipe.texts(model_of(name, F64, dtype, kinks=False), name)
    ours = recipe.texts(model_of(name, dtype, dtype, kinks=False), name)
    assert_within_recorded(ours, exact, name)


@pytest.mark.parametrize("name", recipe.SETS)
def test_the_same_weights_are_tied(name):
    shared = [names for names in recipe.shared_names(model_of(name)) if len(names) > 1]
    assert shared == facts()["shared"][name]


@pytest.mark.parametrize("name", recipe.ATTENTIONS)
def test_attentions_and_masks_of_heads(name):
    expected = under(f"attentions/{name}")
    actual = recipe.run_attentions(model_of(name))
    whole = actual["plain attentions"]
    if name == "default":
        close(whole, expected.pop("plain attentions"))
        del actual["plain attentions"]
    assert_tight({key: recipe.digest(x) for key, x in actual.items()}, expected)
    close(whole.sum(-1), torch.ones(whole.shape[:-1], dtype=F64))


def test_embedded_inputs():
    actual = recipe.run_embedded(model_of())
    assert_tight({key: recipe.digest(x) for key, x in actual.items()}, under("inputs"))


@pytest.mark.parametrize("name", ["default", "no cutoffs"])
def test_fewer_words(name):
    actual = recipe.run_resized(model_of(name), 50)["resized"]
    close(recipe.digest(actual), recorded()[f"resized/{name}"])


@pytest.mark.parametrize("name", recipe.CLASSIFICATIONS)
def test_classification(name):
    options, _ = recipe.CLASSIFICATIONS[name]
    model = model_of(cls=TransfoXLForSequenceClassification, **options)
    assert_tight(recipe.run_classification(model, name), under(name))


@pytest.mark.parametrize("compatible", [False, True])
@pytest.mark.parametrize("call", recipe.tuple_calls())
def test_order_of_fields(compatible, call):
    model = model_of(trainer_compatible=compatible)
    expected = facts()["tuples"][f"trainer_compatible {compatible}"][call]
    assert list(recipe.fields(model, recipe.tuple_calls()[call])) == expected


def test_order_of_fields_of_other_models():
    everything = {"output_hidden_states": True, "output_attentions": True}
    found = recipe.fields(model_of().transformer, everything)
    assert list(found) == facts()["tuples"]["model"]
    head = model_of(cls=TransfoXLForSequenceClassification, num_labels=3, pad_token_id=3)
    assert list(recipe.fields(head, {})) == facts()["tuples"]["classification"]
