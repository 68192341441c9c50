"""SeamlessM4T, first and second: text from speech, chunks."""

from __future__ import annotations

import pytest
import torch
from family_parity import LENGTH, accelerated, cast
from hf_parity import F64
from tiny_speech import CASES, features, made
from transformers import (
    SeamlessM4TConfig,
    SeamlessM4TForSpeechToText,
    SeamlessM4Tv2Config,
    SeamlessM4Tv2ForSpeechToText,
)

import xlnet_fast

TEXT = {
    "vocab_size": 20,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 24,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
}


@pytest.mark.parametrize(
    ("name", "head", "config"),
    [
        ("seamless", SeamlessM4TForSpeechToText, SeamlessM4TConfig),
        ("seamless v2", SeamlessM4Tv2ForSpeechToText, SeamlessM4Tv2Config),
    ],
)
def test_the_same_text_from_speech(name, head, config):
    values = CASES[name].model().config.to_dict() | TEXT
    model = made(head, config, **values)().double()
    model.generation_config.text_decoder_lang_to_code_id = {"eng": 5}
    ours = accelerated(model)
    inputs = cast(features(2, LENGTH, True), F64) | {"tgt_lang": "eng", "max_new_tokens": 6}
    texts = [each.generate(**inputs) for each in (ours, model)]
    assert texts[0].shape[1] > 2
    assert torch.equal(*texts)
    assert "it has no relative positions" in str(xlnet_fast.explain(ours))  # the adapter's


@pytest.mark.parametrize("left", [-1, 2])
@pytest.mark.parametrize("chunk", [1, 4, 50])
def test_chunks(chunk, left):
    case = CASES["seamless v2"]
    options = {"speech_encoder_chunk_size": chunk, "speech_encoder_left_chunk_num": left}
    model = case.model(**options).double()
    inputs = cast(features(2, LENGTH, True), F64)
    with torch.no_grad():
        ours, theirs = (each(**inputs).last_hidden_state for each in (accelerated(model), model))
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
