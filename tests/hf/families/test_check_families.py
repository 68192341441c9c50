"""`xlnet-fast check` of speech encoders: what passes, what fails, what cannot be called."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_speech import CASES
from torch import nn
from transducers import ctc, nemotron, parakeet
from transformers import BertConfig, BertModel

from xlnet_fast.check import check_model
from xlnet_fast.check import run as check_run
from xlnet_fast.check import trial as trial_module
from xlnet_fast.check.encoders import EncoderSubject
from xlnet_fast.checkpoint import load_any_model
from xlnet_fast.errors import ArgumentError


@pytest.fixture(autouse=True)
def one_dtype(monkeypatch):
    monkeypatch.setattr(check_run, "DTYPES", {"fp32": torch.float32})


@pytest.mark.parametrize("make", [ctc, nemotron])
def test_every_backend_passes(make, monkeypatch):
    monkeypatch.setattr(check_run, "BACKENDS", ("sdpa", "cpu"))
    verdicts = list(check_model(make(num_hidden_layers=1)))
    assert {v.computation for v in verdicts} == {"a batch", "a padded batch", "training step"}
    assert [v.status for v in verdicts] == ["ok"] * 6, [v.reason for v in verdicts]


def test_a_wrong_part_fails(monkeypatch):
    right = trial_module.accelerate

    def wrong(model, backend):
        model = right(model, backend)
        with torch.no_grad():
            model.layers[0].self_attn.bias_v.add_(0.3)
        return model

    monkeypatch.setattr(trial_module, "accelerate", wrong)
    monkeypatch.setattr(check_run, "BACKENDS", ("sdpa",))
    verdicts = list(check_model(parakeet(num_hidden_layers=1)))
    assert {v.status for v in verdicts} == {"FAILED"}


def test_a_checkpoint_of_a_family_and_of_none(tmp_path):
    model = ctc(num_hidden_layers=1)
    model.save_pretrained(tmp_path / "ctc")
    loaded, title = load_any_model(str(tmp_path / "ctc"))
    assert title.startswith("ParakeetForCTC from")
    assert all(map(torch.equal, loaded.parameters(), model.parameters()))
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    BertModel(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(ArgumentError, match="is a bert model: nothing in it is accelerated"):
        load_any_model(str(tmp_path / "bert"))


@pytest.mark.parametrize("name", CASES)
def test_every_family_can_be_called(name):
    case = CASES[name]
    model = case.model(case.implementations[0])
    if name == "fastspeech2":  # its encoder is a module of its own, and its model rounds durations
        with pytest.raises(ArgumentError, match="is no model of transformers"):
            EncoderSubject(model)
        return
    subject = EncoderSubject(model)
    results = subject.computations["a padded batch"](model, 0)
    assert all(x.isfinite().all() for x in results.values())


def test_what_cannot_be_called_is_told():
    with pytest.raises(ArgumentError, match="has no attention that is accelerated"):
        EncoderSubject(nn.Linear(2, 2))
    with pytest.raises(ArgumentError, match="is no model of transformers"):
        EncoderSubject(nn.Sequential(*(copy.deepcopy(layer) for layer in parakeet().layers)))
