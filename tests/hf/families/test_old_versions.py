"""A transformers older than the families were tested with keeps its own code, and says so."""

from __future__ import annotations

import pytest
import torch
from transformers import Wav2Vec2BertConfig, Wav2Vec2BertModel

import xlnet_fast
from xlnet_fast.check.encoders import EncoderSubject
from xlnet_fast.errors import ArgumentError
from xlnet_fast.hf import versions


def tiny_bert():
    config = Wav2Vec2BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        feature_projection_input_dim=8, output_hidden_size=16,
    )  # fmt: skip
    return Wav2Vec2BertModel(config).eval()


def test_an_older_version_keeps_its_code(monkeypatch):
    monkeypatch.setattr(versions, "_VERSION", (4, 57))
    model, inputs = tiny_bert(), {"input_features": torch.randn(1, 9, 8)}
    classes = [type(module) for module in model.modules()]
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
        assert xlnet_fast.accelerate(model) is model
        assert torch.equal(model(**inputs).last_hidden_state, expected)
    assert [type(module) for module in model.modules()] == classes
    assert not xlnet_fast.is_accelerated(model)
    told = xlnet_fast.explain(model)
    assert told.verdict.startswith("not accelerated")
    assert "Wav2Vec2-BERT keeps its own code" in str(told)
    assert "is older than 5.17" in " ".join(told.notes)
    assert xlnet_fast.restore(model) is model


def test_there_is_nothing_to_check(monkeypatch):
    monkeypatch.setattr(versions, "_VERSION", (4, 57))
    with pytest.raises(
        ArgumentError, match=r"no attention that is accelerated: .* older than 5\.17"
    ):
        EncoderSubject(tiny_bert())
