"""A prompt in segments, against a plain loop over Hugging Face's forward that does the same."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import XLNetConfig, XLNetLMHeadModel

from xlnet_fast import accelerate
from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.generate import read_in_segments
from xlnet_fast.generate.segments import boundaries, repeated

VOCABULARY = 60
TOKENS = 8


def model(**changes):
    torch.manual_seed(0)
    shape = {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64, "initializer_range": 0.4}
    config = XLNetConfig(vocab_size=VOCABULARY, **shape, **changes)
    made = XLNetLMHeadModel(config).eval()
    made.generation_config.eos_token_id = None
    return made


def accelerated(hf):
    return accelerate(copy.deepcopy(hf))


def prompt(tokens, batch=1):
    return torch.randint(9, VOCABULARY, (batch, tokens), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def step(hf, ids, mems):
    """Logits of the token behind ``ids``, which nothing else sees, and Hugging Face's memory."""
    batch, length = ids.shape[0], ids.shape[1] + 1
    seen = torch.cat([ids, torch.zeros(batch, 1, dtype=torch.long)], 1)
    perm_mask = torch.zeros(batch, length, length)
    perm_mask[:, :, -1] = 1
    mapping = torch.zeros(batch, 1, length)
    mapping[:, 0, -1] = 1
    out = hf(seen, perm_mask=perm_mask, target_mapping=mapping, mems=mems, use_mems=True)
    return out.logits[:, 0], out.mems


@torch.no_grad()
def plain_loop(hf, ids, segments):
    """Greedy: each segment on the memory of those before, the last with a token to predict."""
    mems, begin = None, 0
    for end in segments[:-1]:
        mems, begin = hf(ids[:, begin:end], mems=mems, use_mems=True).mems, end
    logits, mems = step(hf, ids[:, begin:], mems)
    written = [logits.argmax(-1, keepdim=True)]
    for _ in range(TOKENS - 1):
        all_ids = torch.cat([ids, *written], 1)
        # The memory has the tokens up to the last but one, then two rows that are made anew.
        mems = [layer[: all_ids.shape[1] - 2] for layer in mems]
        logits, mems = step(hf, all_ids[:, -2:], mems)
        written.append(logits.argmax(-1, keepdim=True))
    return torch.cat([ids, *written], 1)


def write(writer, ids, **arguments):
    return writer.generate(ids, max_new_tokens=TOKENS, do_sample=False, **arguments)


@pytest.mark.parametrize(
    ("tokens", "length", "segments"),
    [
        (11, 4, [3, 7, 11]),
        (12, 4, [4, 8, 12]),
        (5, 4, [1, 5]),
        (7, 2, [1, 3, 5, 7]),
        (7, 7, [7]),
        (3, 9, [3]),
    ],
)
def test_the_text_is_that_of_a_plain_loop(tokens, length, segments):
    assert [end for _, end in boundaries(tokens, length)] == segments
    hf, ids = model(), prompt(tokens, 2)
    expected = plain_loop(hf, ids, segments)
    assert len(set(expected[0, tokens:].tolist())) > 2  # else a wrong memory would hardly show
    for writer in (hf, accelerated(hf)):
        memory = read_in_segments(writer, ids, length)
        assert [layer.shape for layer in memory] == [(tokens, 2, 32)] * 2
        assert torch.equal(write(writer, ids, mems=memory), expected)


def test_one_segment_is_the_prompt_as_huggingface_reads_it_and_two_are_not():
    hf, ids = model(), prompt(12)
    whole = write(hf, ids)
    assert torch.equal(write(hf, ids, mems=read_in_segments(hf, ids, 12)), whole)
    assert not torch.equal(write(hf, ids, mems=read_in_segments(hf, ids, 6)), whole)


def test_what_is_remembered_is_cut_as_the_config_says():
    hf, ids = model(mem_len=5), prompt(13)
    mems = None
    for begin, end in ((0, 1), (1, 5), (5, 9), (9, 13)):
        mems = hf(ids[:, begin:end], mems=mems, use_mems=True).mems
    ours = read_in_segments(accelerated(hf), ids, 4)
    for theirs, layer in zip(mems, ours, strict=True):
        assert layer.shape == (5, 1, 32)
        torch.testing.assert_close(layer, theirs.detach())
    assert torch.equal(write(accelerated(hf), ids, mems=ours), write(hf, ids, mems=mems))


def test_a_padded_batch_is_read_as_each_text_alone():
    lengths, longest = (13, 6, 2), 13
    hf = model()
    fast = accelerated(hf)
    texts = [prompt(length) for length in lengths]
    ids = torch.cat([torch.nn.functional.pad(t, (longest - t.shape[1], 0), value=5) for t in texts])
    mask = torch.tensor([[0] * (longest - n) + [1] * n for n in lengths])
    memory = read_in_segments(fast, ids, 5, mask)
    together = write(fast, ids, mems=memory, attention_mask=mask)[:, longest:]
    for text, row in zip(texts, together, strict=True):
        alone = plain_loop(hf, text, [end for _, end in boundaries(text.shape[1], 5)])
        assert torch.equal(alone[0, text.shape[1] :], row)


@pytest.mark.parametrize("search", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_beams_have_the_memory_of_their_text(search):
    """Hugging Face's own ``generate`` on as many copies of the text, each with its memory."""
    hf, ids = model(), prompt(9, 2)
    memory = read_in_segments(accelerated(hf), ids, 4)
    copies = read_in_segments(hf, ids.repeat_interleave(3, 0), 4)
    ours = write(accelerated(hf), ids, mems=repeated(memory, 3), **search)
    assert torch.equal(ours, write(hf, ids, mems=copies, **search))
    assert not torch.equal(ours[:2], write(hf, ids, mems=copies[::-1], **search)[:2])


@pytest.mark.parametrize(
    ("error", "words", "tokens", "length", "changes"),
    [
        (ArgumentError, "segment_length is 1, expected at least the 2 tokens", 4, 1, {}),
        (ShapeError, "has 1 tokens a text, expected at least 2", 1, 4, {}),
        (
            ArgumentError,
            "reuse_len is 3, with which memory keeps the first",
            4,
            2,
            {"reuse_len": 3},
        ),
    ],
)
def test_what_cannot_be_read(error, words, tokens, length, changes):
    with pytest.raises(error, match=words):
        read_in_segments(model(**changes), prompt(tokens), length)
