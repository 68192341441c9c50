"""Granite speech: blocks, eager attention of the fifth, CTC."""

from __future__ import annotations

import pytest
import torch
from family_parity import LENGTH, accelerated, cast, compare, in_float64, run
from hf_parity import F64, assert_tight
from tiny_speech import CASES, mel_frames
from transformers import GraniteSpeech5CTCConfig, GraniteSpeech5ForCTC


@pytest.mark.parametrize("name", ["granite", "granite 5"])
@pytest.mark.parametrize("length", [2, 4, 8, 9])
def test_frames_around_whole_blocks(name, length):
    case = CASES[name]
    model = case.model().double()
    inputs = cast(case.inputs(2, length, True, 0), F64)
    valid = case.valid(inputs)
    assert_tight(run(accelerated(model), inputs, valid), run(model, inputs, valid))


def test_eager_attention():
    """Its softmax is one of fp32 in float64 too, so the exact results are those of "sdpa"."""
    case = CASES["granite 5"]
    exact = in_float64(case.model("sdpa"))
    compare(case, case.model("eager"), case.several(False), exact=exact)


def test_the_same_text_by_ctc():
    encoder = CASES["granite 5"].model().config.to_dict()
    config = GraniteSpeech5CTCConfig(vocab_size=encoder["vocab_size"], encoder_config=encoder)
    model = GraniteSpeech5ForCTC(config).eval().double()
    ours = accelerated(model)
    inputs = cast(mel_frames(2, LENGTH, True), F64)
    assert torch.equal(ours.generate(**inputs), model.generate(**inputs))
    labels = inputs | {"labels": torch.tensor([[1, 2], [3, 0]])}
    assert_tight({"loss": ours(**labels).loss.detach()}, {"loss": model(**labels).loss.detach()})
