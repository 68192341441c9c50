"""sentence-transformers on an accelerated XLNet: HF's embeddings, losses and gradients."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

import xlnet_fast

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """HF's and an accelerated copy, without dropout."""
    sys.path.insert(0, str(EXAMPLES))
    from tiny_model import tiny_model

    transformer = Transformer(
        tiny_model(tmp_path_factory.mktemp("tiny")),
        config_kwargs={"dropout": 0.0, "summary_last_dropout": 0.0},
    )
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    plain = SentenceTransformer(modules=[transformer, pooling]).double()
    return plain, xlnet_fast.accelerate(copy.deepcopy(plain))


TEXTS = ["a fine film", "grey from the first scene to the last", "it is", "a warm and clever story"]


def test_embeddings(models):
    expected, found = (model.encode(TEXTS, convert_to_tensor=True) for model in models)
    assert torch.cdist(expected, expected).max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_similarities_after_saving(models, tmp_path):
    models[1].save(str(tmp_path))
    loaded = SentenceTransformer(str(tmp_path)).double()
    assert not xlnet_fast.is_accelerated(loaded)
    expected = models[0].similarity(*(models[0].encode(TEXTS, convert_to_tensor=True),) * 2)
    found = loaded.similarity(*(loaded.encode(TEXTS, convert_to_tensor=True),) * 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_step_of_training(models):
    results = []
    for model in models:
        model.train()
        model.zero_grad()
        features = [dict(model.preprocess(TEXTS[start::2])) for start in (0, 1)]
        loss = MultipleNegativesRankingLoss(model)(features, None)
        loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append({"loss": loss.detach(), **gradients})
        model.eval()
    assert len(results[0]) > 20
    torch.testing.assert_close(results[1], results[0], rtol=1e-8, atol=1e-10)
