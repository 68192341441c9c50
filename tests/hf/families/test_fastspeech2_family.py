"""FastSpeech2-Conformer as a whole, and what its masks do."""

from __future__ import annotations

import pytest
import torch
from family_parity import LENGTH, accelerated, random_frames, randomized, run
from hf_parity import F64, assert_tight
from tiny_speech import CASES, fastspeech2
from transformers import FastSpeech2ConformerConfig, FastSpeech2ConformerModel

import xlnet_fast

CASE = CASES["fastspeech2"]
BINS = 4


def whole_model():
    small = {
        f"{part}_{name}": size
        for part in ("duration_predictor", "energy_predictor", "pitch_predictor")
        for name, size in (("layers", 1), ("channels", 4))
    }
    rates = {
        f"{part}_dropout{suffix}": 0.0
        for part, suffix in (
            ("energy_predictor", ""),
            ("pitch_predictor", ""),
            ("energy_embed", ""),
            ("pitch_embed", ""),
            ("duration_predictor", "_rate"),
            ("speech_decoder_postnet", ""),
            ("decoder", "_rate"),
            ("decoder_positional", "_rate"),
            ("decoder_attention", "_rate"),
        )
    }
    values = {
        "hidden_size": 16,
        "vocab_size": 12,
        "num_mel_bins": BINS,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_linear_units": 8,
        "decoder_linear_units": 8,
        "encoder_kernel_size": 3,
        "decoder_kernel_size": 3,
        "speech_decoder_postnet_layers": 1,
        "speech_decoder_postnet_units": 4,
        "encoder_dropout_rate": 0.0,
        "encoder_positional_dropout_rate": 0.0,
        "encoder_attention_dropout_rate": 0.0,
    }
    return randomized(
        FastSpeech2ConformerModel(FastSpeech2ConformerConfig(**values, **small, **rates))
    )


@pytest.fixture
def in_double(monkeypatch):
    """The length regulator of HF's makes its frames in ``torch.float``, whatever the model is."""
    monkeypatch.setattr(torch, "float", F64)


@pytest.mark.usefixtures("in_double")
def test_speech_from_text():
    model = whole_model().double()
    ids = CASE.inputs(2, LENGTH, True, 0)["input_tensor"]
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        results = [run(m, inputs, backward=False) for m in (accelerated(model), model)]
    assert results[0]["spectrogram"].shape[1] > 0
    assert_tight(*results)


@pytest.mark.usefixtures("in_double")
def test_training():
    model = whole_model().double().train()
    ids = CASE.inputs(2, LENGTH, True, 0)["input_tensor"]
    durations = torch.ones_like(ids)
    durations[0, 0] = 3
    frames = int(durations.sum(1).max())
    inputs = {
        "input_ids": ids,
        "duration_labels": durations,
        "pitch_labels": random_frames(2, LENGTH, 1).double(),
        "energy_labels": random_frames(2, LENGTH, 1, seed=1).double(),
        "spectrogram_labels": random_frames(2, frames, BINS, seed=2).double(),
    }
    inputs["spectrogram_labels"][1, LENGTH:] = -100
    results = []
    for each in (accelerated(model), model):
        each.zero_grad()
        loss = each(**inputs).loss
        loss.backward()
        grads = {name: p.grad for name, p in each.named_parameters()}
        results.append({"loss": loss.detach(), **grads})
    assert_tight(*results)


def test_an_element_without_frames_is_zero():
    model = CASE.model().double()
    pairs = [
        next(m for m in each.modules() if isinstance(m, fastspeech2.FastSpeech2ConformerAttention))
        for each in (accelerated(model), model)
    ]
    frames = random_frames(2, LENGTH, 16).double()
    mask = torch.ones(2, 1, LENGTH)
    mask[1] = 0
    positions = random_frames(1, 2 * LENGTH - 1, 16, seed=1).double()
    with torch.no_grad():
        outputs = [each(frames, mask, positions)[0] for each in pairs]
    torch.testing.assert_close(*outputs, rtol=1e-11, atol=1e-11)
    assert outputs[0].dtype == F64


def test_a_dropout_that_must_be_called_is():
    model = CASE.model().double().train()
    ours = accelerated(model)
    attention = next(
        m for m in ours.modules() if isinstance(m, fastspeech2.FastSpeech2ConformerAttention)
    )
    seen = []
    attention.dropout.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    inputs = CASE.inputs(2, LENGTH, True, 0)
    valid = CASE.valid(inputs)
    assert_tight(run(ours, inputs, valid), run(model, inputs, valid))
    assert seen[0].shape == (2, 2, LENGTH, LENGTH)
    assert "the dropout of attention is no bare nn.Dropout" in str(xlnet_fast.explain(ours))
