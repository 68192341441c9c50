"""SpeechT5: a row of the table for each distance wherever every layer takes it, and generation."""

from __future__ import annotations

import pytest
import torch
from family_parity import (
    LENGTH,
    accelerated,
    assert_same_moments,
    cast,
    random_frames,
    run,
)
from hf_parity import F64, assert_tight
from tiny_speech import CASES, made
from torch import nn
from transformers import SpeechT5Config, SpeechT5ForTextToSpeech
from transformers.models.speecht5.modeling_speecht5 import (
    SpeechT5Attention,
    SpeechT5Encoder,
    SpeechT5EncoderLayer,
)

import xlnet_fast
from xlnet_fast.hf.families.speecht5 import _of_pairs

CASE = CASES["speecht5"]


def encoder_of(model):
    return next(m for m in model.modules() if isinstance(m, SpeechT5Encoder))


def shapes_of_tables(encoder, *args, **kwargs):
    """What the positions gave, and the output."""
    shapes = []
    handle = encoder.embed_positions.register_forward_hook(
        lambda module, args, output: shapes.append(tuple(output.shape))
    )
    with torch.no_grad():
        output = encoder(*args, **kwargs).last_hidden_state
    handle.remove()
    return shapes, output


class OwnLayer(SpeechT5EncoderLayer):
    def forward(self, *args, position_bias=None, **kwargs):
        assert position_bias.shape == (LENGTH, LENGTH, 8)
        return super().forward(*args, position_bias=position_bias, **kwargs)


def own_layer(encoder):
    encoder.layers[1].__class__ = OwnLayer


def own_forward(encoder):
    attention = encoder.layers[1].attention
    attention.forward = attention.forward  # as accelerate's hooks do


CHANGES = {"nothing": lambda encoder: None, "a layer": own_layer, "a forward": own_forward}


@pytest.mark.parametrize("change", CHANGES)
def test_the_table_has_a_row_for_each_distance_where_all_layers_take_it(change):
    theirs = encoder_of(CASE.model().double())
    CHANGES[change](theirs)
    ours = accelerated(theirs) if change != "a forward" else None
    if ours is None:
        ours = accelerated(encoder_of(CASE.model().double()))
        own_forward(ours)
    frames = random_frames(2, LENGTH, 16).double()
    shapes, output = shapes_of_tables(ours, frames)
    compact = change == "nothing"
    assert shapes == [(2 * LENGTH - 1, 1, 8) if compact else (LENGTH, LENGTH, 8)]
    torch.testing.assert_close(output, theirs(frames).last_hidden_state, rtol=1e-11, atol=1e-11)
    assert shapes_of_tables(xlnet_fast.restore(ours) if compact else theirs, frames)[0] == [
        (LENGTH, LENGTH, 8)
    ]


def test_a_mask_of_the_users_own_runs_hugging_faces_way():
    theirs = encoder_of(CASE.model().double())
    mask = -torch.rand(2, 1, LENGTH, LENGTH, generator=torch.Generator().manual_seed(0)).double()
    frames = random_frames(2, LENGTH, 16).double()
    shapes, output = shapes_of_tables(accelerated(theirs), frames, attention_mask=mask)
    assert shapes == [(LENGTH, LENGTH, 8)]
    expected = theirs(frames, attention_mask=mask).last_hidden_state
    assert torch.equal(output, expected)


@pytest.mark.parametrize("length", [1, 2, 13])
def test_lengths_around_the_farthest_distance(length):
    model = CASE.model().double()
    inputs = cast(CASE.inputs(2, length, True, 0), F64)
    valid = CASE.valid(inputs)
    assert_tight(run(accelerated(model), inputs, valid), run(model, inputs, valid))


def test_dropout_drops_what_hugging_faces_does():
    model = CASE.model().train()
    pairs = [encoder_of(each).layers[0].attention for each in (model, accelerated(model))]
    frames = random_frames(2, LENGTH, 16)
    table = random_frames(2 * LENGTH - 1, 1, 8, seed=1)
    theirs = ((frames,), {"position_bias": _of_pairs(table)})
    ours = ((frames,), {"position_bias": table})
    expected = pairs[0](frames, position_bias=_of_pairs(table))[0].detach()
    assert_same_moments(pairs, [theirs, ours], expected)


def test_the_decoder_is_explained():
    told = str(xlnet_fast.explain(accelerated(CASE.model()))).replace("\n", " ")
    assert "the attention of 2 of 4 modules keeps its own code: it is the decoder's" in told


def test_the_same_text_from_speech():
    model = CASE.model().double()
    inputs = cast({"input_values": CASE.inputs(2, LENGTH, True, 0)["input_values"]}, F64)
    texts = [each.generate(**inputs, max_new_tokens=6) for each in (accelerated(model), model)]
    assert texts[0].shape[1] > 2
    assert torch.equal(*texts)


def test_the_same_speech_from_text():
    values = CASE.model().config.to_dict() | {"num_mel_bins": 4, "speaker_embedding_dim": 4}
    small = {"speech_decoder_postnet_units": 4, "speech_decoder_prenet_units": 4}
    model = made(
        SpeechT5ForTextToSpeech, SpeechT5Config, implementation="eager", **values | small
    )()
    model = model.double()
    ours = accelerated(model)
    ids = torch.tensor([[4, 5, 6, 7], [8, 9, 10, 11]])
    speech = []
    for each in (ours, model):
        torch.manual_seed(0)  # of the prenet, whose dropout HF keeps in evaluation
        speech.append(
            each.generate_speech(ids, torch.ones(2, 4).double(), maxlenratio=2.0, minlenratio=1.0)
        )
    assert speech[0].numel() > 0
    torch.testing.assert_close(*speech, rtol=1e-10, atol=1e-10)
    assert isinstance(encoder_of(ours).layers[0].attention, SpeechT5Attention)
    assert isinstance(ours, nn.Module)
