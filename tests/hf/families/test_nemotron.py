"""Nemotron's streaming encoder: offline, and chunk by chunk with its caches, against "sdpa"."""

from __future__ import annotations

import itertools

import pytest
import torch
from family_parity import accelerated, compare, in_float64
from transducers import NEMOTRON, nemotron, several_sounds, sounds
from transformers.models.nemotron_asr_streaming import modeling_nemotron_asr_streaming as theirs

import xlnet_fast
from xlnet_fast.hf.families import frames
from xlnet_fast.hf.families import nemotron as ours
from xlnet_fast.hf.families.windows import recognized
from xlnet_fast.masks import AttentionMask, unpack_bits
from xlnet_fast.tolerance import assert_within

FRAMES, CHUNK = 21, 4


@pytest.mark.parametrize("padded", [False, True])
def test_outputs_and_gradients(padded):
    inputs = several_sounds(FRAMES, padded, seeds=16, num_lookahead_tokens=CHUNK - 1)
    compare(NEMOTRON, nemotron(), inputs)


def test_the_mask_becomes_a_window_of_chunks():
    fast, inputs = accelerated(nemotron()), sounds(FRAMES)
    with torch.no_grad():
        fast(**inputs, num_lookahead_tokens=CHUNK - 1)
    _, _, mask = frames._MASKS._last[0]
    assert (mask.window, mask.chunk) == ((8, 0), CHUNK)
    assert mask.bits is None
    assert mask.key_padding.any(1).tolist() == [False, True]


def stream(model, features, step):
    """Encode pieces of ``step`` frames, as they would arrive."""
    outputs, caches = [], {}
    for piece in features.split(8 * step, dim=1):
        output = model(
            piece.to(model.dtype), use_cache=True, num_lookahead_tokens=step - 1, **caches
        )
        name = "cache" if "cache" in output else "past_key_values"
        caches = {name: output[name], "padding_cache": output.padding_cache}
        outputs.append(output.last_hidden_state)
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("step", [1, CHUNK])
def test_streaming_chunk_by_chunk(step):
    model = nemotron(lookahead=step - 1)
    features = sounds(FRAMES, batch=1)["input_features"]
    with torch.no_grad():
        fast = accelerated(model)
        actual, eager, exact = (
            stream(each, features, step) for each in (fast, model, in_float64(model))
        )
    assert_within(actual, eager, exact)


def test_frames_that_see_nothing_attend_to_nothing():
    """As with a mask of each chunk alone, once the cache has slid past it."""
    model = nemotron(num_hidden_layers=1)
    fast, features = accelerated(model), sounds(FRAMES, batch=1)["input_features"]
    results = []
    for each in (fast, model):
        caches, pieces = {}, []
        for piece in features.split(16, dim=1):
            output = each(
                piece, torch.ones(piece.shape[:2], dtype=torch.bool), use_cache=True,
                num_lookahead_tokens=1, **caches,
            )  # fmt: skip
            name = "cache" if "cache" in output else "past_key_values"
            caches = {name: output[name], "padding_cache": output.padding_cache}
            pieces.append(output.last_hidden_state)
        results.append(torch.cat(pieces, 1))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    blind = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    blind[0, 0, 2] = False
    x = torch.randn(2, 5, 32)
    actual, expected = (
        m.layers[0].self_attn(x, m.encode_positions(x), attention_mask=blind)[0]
        for m in (fast, model)
    )
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_eager_keeps_huggingfaces_code_and_is_told():
    model = nemotron("eager")
    fast, inputs = accelerated(model), sounds(FRAMES, padded=False)
    assert not any(isinstance(m, ours.FastAttention) for m in fast.modules())
    assert "Hugging Face inverts the mask" in xlnet_fast.explain(fast).verdict
    with torch.no_grad():
        given = {**inputs, "num_lookahead_tokens": 3}
        torch.testing.assert_close(
            fast(**given).last_hidden_state, model(**given).last_hidden_state,
            rtol=1e-4, atol=1e-5,
        )  # fmt: skip


def test_too_many_frames_raise_as_huggingfaces():
    fast = accelerated(nemotron(max_position_embeddings=10))
    with pytest.raises(ValueError, match="max_position_embeddings"):
        fast(**sounds(FRAMES), num_lookahead_tokens=0)


def test_a_traced_mask_is_bits():
    shown = torch.rand(2, 1, 5, 9) > 0.5
    bits = torch.compile(lambda x: frames.mask_of_frames(x).bits, backend="eager", fullgraph=True)
    assert torch.equal(unpack_bits(bits(shown), 9), ~shown[:, 0])


def test_a_mask_of_another_make_is_bits():
    shown = torch.rand(2, 1, 5, 9) > 0.5
    assert torch.equal(unpack_bits(frames.mask_of_frames(shown).bits, 9), ~shown[:, 0])
    shown[:] = True
    assert frames.mask_of_frames(shown).hides_nothing  # the same tensor, written to
    with torch.inference_mode():
        shown = torch.ones(2, 1, 5, 9, dtype=torch.bool)
        assert frames.mask_of_frames(shown).hides_nothing
        shown[0, 0, 2, 3] = False
        assert torch.equal(unpack_bits(frames.mask_of_frames(shown).bits, 9), ~shown[:, 0])


@pytest.mark.parametrize("memory", [0, 3])
@pytest.mark.parametrize("rows", [1, 5, 16])
def test_every_mask_of_windows_chunks_and_padding_is_recognized(rows, memory):
    keys, count = rows + memory, 0
    padding = torch.zeros(2, keys, dtype=torch.bool)
    padding[1, -2:] = True
    windows = [(left, right) for left in (None, 0, 1, 8) for right in (None, 0, 4)]
    for window, chunk in itertools.product(windows, (1, 2, 4)):
        for key_padding in (None, padding) if keys > 2 else (None,):
            mask = AttentionMask(
                key_padding=key_padding,
                window=None if window == (None, None) else window,
                chunk=1 if window == (None, None) else chunk,
            )
            hidden = mask.hidden(torch.arange(rows)[None], keys, memory)
            shown = torch.ones(2, rows, keys, dtype=torch.bool)
            if hidden is not None:
                shown &= ~hidden
            assert recognized(shown) is not None, (window, chunk)
            count += 1
    assert count >= 30


def test_as_many_frames_as_the_config_has():
    inputs = sounds(FRAMES, padded=False)
    frames = nemotron()(**inputs).last_hidden_state.shape[1]  # one more: it pads in front
    model = nemotron(max_position_embeddings=frames)
    fast = accelerated(model)
    with torch.no_grad():
        torch.testing.assert_close(
            fast(**inputs).last_hidden_state, model(**inputs).last_hidden_state,
            rtol=1e-4, atol=1e-5,
        )  # fmt: skip
        with pytest.raises(ValueError, match="less or equal than"):
            fast(**sounds(FRAMES + 1))


def test_restore():
    model, inputs = nemotron(), sounds(FRAMES)
    with torch.no_grad():
        expected = model(**inputs, num_lookahead_tokens=3).last_hidden_state
        xlnet_fast.restore(xlnet_fast.accelerate(model))
        assert torch.equal(model(**inputs, num_lookahead_tokens=3).last_hidden_state, expected)
    assert type(model.layers[0].self_attn) is theirs.NemotronAsrStreamingEncoderAttention
