"""captum's attributions of an accelerated model, as of HF's."""

from __future__ import annotations

import pytest
import torch
from captum.attr import (
    IntegratedGradients,
    LayerGradientXActivation,
    Occlusion,
    Saliency,
)
from hf_parity import F64, accelerated, padding, random_ids, tiny_model
from transformers import XLNetForSequenceClassification

BATCH, LENGTH = 2, 7
MASK = padding(BATCH, LENGTH, "left")


@pytest.fixture(scope="module")
def models():
    plain = tiny_model(XLNetForSequenceClassification, F64)
    return plain, accelerated(plain)


def of_embeddings(model):
    def forward(embeddings):
        repeats = embeddings.shape[0] // BATCH
        return model(inputs_embeds=embeddings, attention_mask=MASK.repeat(repeats, 1)).logits

    return forward


def compared(models, attribute):
    expected, found = map(attribute, models)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("method", [IntegratedGradients, Saliency, Occlusion])
def test_attributions_of_embeddings(models, method):
    options = {
        IntegratedGradients: {"n_steps": 8},
        Saliency: {"abs": False},
        Occlusion: {"sliding_window_shapes": (1, 16)},
    }[method]

    def attribute(model):
        embeddings = model.transformer.word_embedding(random_ids(BATCH, LENGTH)).detach()
        return method(of_embeddings(model)).attribute(embeddings, target=1, **options)

    compared(models, attribute)


def test_they_add_up(models):
    """Of ours alone: the attributions are the difference of the outputs."""
    model = models[1]
    embed = model.transformer.word_embedding
    embeddings, others = (embed(random_ids(BATCH, LENGTH, seed)).detach() for seed in (0, 1))
    forward = of_embeddings(model)
    integrated = IntegratedGradients(forward)
    parts = integrated.attribute(embeddings, baselines=others, target=0, n_steps=100)
    whole = forward(embeddings)[:, 0] - forward(others)[:, 0]
    torch.testing.assert_close(parts.sum((1, 2)), whole, rtol=1e-3, atol=1e-3)


def test_attributions_of_a_layer(models):
    def attribute(model):
        layer = model.transformer.layer[0].ff
        of_layer = LayerGradientXActivation(
            lambda ids: model(ids, attention_mask=MASK).logits, layer
        )
        return of_layer.attribute(random_ids(BATCH, LENGTH), target=1)

    compared(models, attribute)
