"""Drafted tokens, computed several steps at once: the tokens of plain decoding in fewer passes."""

from __future__ import annotations

import pytest
import torch
from generation_oracle import drive, in_float64, wide_model
from hf_parity import accelerated, random_ids
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessor,
    LogitsProcessorList,
    TextStreamer,
)

from xlnet_fast.errors import ArgumentError, PerformanceWarning
from xlnet_fast.hf.families.xlnet.generation import model as generation
from xlnet_fast.hf.families.xlnet.generation import recorded
from xlnet_fast.hf.families.xlnet.generation.ahead import run_ahead
from xlnet_fast.hf.families.xlnet.generation.drafts import Limit

CONFIGS = {
    "plain": {},
    "mem_len 2": {"mem_len": 2},
    "mem_len 16": {"mem_len": 16},
    "reuse_len 3": {"reuse_len": 3, "mem_len": 7},
    "clamp_len": {"clamp_len": 3},
}
TOKENS = 40


@pytest.fixture
def passes(monkeypatch):
    """How often the layers ran."""
    count = [0]

    def counted(function):
        def run(*args):
            count[0] += 1
            return function(*args)

        return run

    monkeypatch.setattr(recorded, "run", counted(recorded.run))
    monkeypatch.setattr(generation, "run_ahead", counted(run_ahead))
    return count


def tokens_of(model, ids, **options):
    torch.manual_seed(5)
    options = {"max_new_tokens": TOKENS, "do_sample": False, **options}
    return model.generate(ids, **options)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("attn_type", ["bi", "uni"])
@pytest.mark.parametrize("sampled", [False, True])
def test_prompt_lookup_gives_the_tokens_of_plain_decoding(passes, config, attn_type, sampled):
    theirs = wide_model(attn_type=attn_type, **CONFIGS[config])
    ours, ids = accelerated(theirs), random_ids(1, 9)
    sampling = {"do_sample": True, "top_k": 3} if sampled else {}
    expected = tokens_of(theirs, ids, **sampling)
    found = tokens_of(ours, ids, prompt_lookup_num_tokens=5, **sampling)
    assert torch.equal(found, expected)
    assert passes[0] < TOKENS
    assert len(expected.unique()) > 4


@pytest.mark.parametrize("attn_type", ["bi", "uni"])
@pytest.mark.parametrize("config", CONFIGS)
def test_logits_of_drafted_steps_are_those_of_hugging_face(attn_type, config):
    """Right drafts and wrong ones: the first wrong one ends what is kept."""
    theirs = in_float64(wide_model(attn_type=attn_type, **CONFIGS[config]))
    ours = accelerated(wide_model(attn_type=attn_type, **CONFIGS[config]).double())
    ids = random_ids(1, 6)
    expected, tokens, mems = drive(theirs, ids, 12, True)
    right = tokens[0].tolist()

    class Drafts:
        def after(self, text):
            drafts = right[text.shape[1] :][:4]
            return [*drafts[:2], 49 - drafts[2], *drafts[3:]] if text.shape[1] == 12 else drafts

    given = {generation._DRAFTS: Drafts()}
    logits, _, state = drive(ours, ids, tokens[:, 6:], True, **given)
    for a, b in zip(logits, expected, strict=True):
        assert float((a - b).abs().max() / b.abs().max()) < 1e-12
    for a, b in zip(state, mems, strict=True):
        assert a.shape == b.shape
        assert float((a - b).abs().max()) < 1e-11 if a.numel() else True


def test_drafts_become_fewer_where_they_are_wrong_and_more_where_they_hold():
    limit = Limit(16)
    text = [1, 2, 3]
    assert limit.after(text) == 4
    for held, expected in ((0, 1), (1, 2), (2, 4), (4, 8), (3, 4), (4, 8), (8, 16), (16, 16)):
        drafts = limit.note(text, list(range(10, 10 + limit.after(text))))
        text = [*text, *drafts[:held], 9]
        assert limit.after(text) == expected
    assert Limit(2).after(text) == 2


def test_padding_before_the_text():
    theirs = wide_model()
    ours = accelerated(theirs)
    ids, mask = random_ids(1, 9), torch.ones(1, 9, dtype=torch.long)
    mask[:, :3] = 0
    alone = tokens_of(theirs, ids[:, 3:])
    found = tokens_of(ours, ids, attention_mask=mask, prompt_lookup_num_tokens=5)
    assert torch.equal(found[:, 3:], alone)


@pytest.mark.parametrize("fast", [True, False])
def test_an_assistant(passes, fast):
    theirs = wide_model()
    ours = accelerated(theirs)
    assistant = accelerated(wide_model()) if fast else wide_model()
    expected = tokens_of(theirs, random_ids(1, 9))
    found = tokens_of(ours, random_ids(1, 9), assistant_model=assistant)
    assert torch.equal(found, expected)
    assert passes[0] < TOKENS or fast
    other = wide_model(n_layer=1)
    assert torch.equal(tokens_of(ours, random_ids(1, 9), assistant_model=other), expected)


def test_an_assistant_of_another_family():
    theirs = wide_model()
    config = GPT2Config(
        vocab_size=50, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=None
    )
    torch.manual_seed(0)
    assistant = GPT2LMHeadModel(config).eval()
    assistant.generation_config.pad_token_id = 5
    expected = tokens_of(theirs, random_ids(1, 9))
    assert torch.equal(
        tokens_of(accelerated(theirs), random_ids(1, 9), assistant_model=assistant), expected
    )


def test_scores_and_streams_are_those_of_plain_decoding():
    ours = accelerated(wide_model())

    class Tokens(TextStreamer):
        def __init__(self):
            self.seen = []

        def put(self, value):
            self.seen.append(value.tolist())

        def end(self):
            self.seen.append("end")

    results = []
    for given in ({}, {"prompt_lookup_num_tokens": 4}):
        streamer = Tokens()
        result = tokens_of(
            ours, random_ids(1, 9), output_scores=True, return_dict_in_generate=True,
            streamer=streamer, **given,
        )  # fmt: skip
        results.append((result, streamer.seen))
    (plain, seen), (drafted, seen_drafted) = results
    assert seen == seen_drafted
    assert len(plain.scores) == len(drafted.scores) == TOKENS
    for a, b in zip(plain.scores, drafted.scores, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


class Counting(LogitsProcessor):
    """What it does depends on how often it was called."""

    def __init__(self):
        self.calls = 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        scores = scores.clone()
        scores[:, self.calls % 50] += 4.0
        return scores


def test_processors_are_called_once_a_token():
    ours, results = accelerated(wide_model()), []
    for given in ({}, {"prompt_lookup_num_tokens": 4}):
        processor = Counting()
        processors = LogitsProcessorList([processor])
        results.append(tokens_of(ours, random_ids(1, 9), logits_processor=processors, **given))
        assert processor.calls == TOKENS
    assert torch.equal(*results)


@pytest.mark.parametrize("number", [0, -1, 1.5, "3"])
def test_a_number_of_drafts_that_is_none(number):
    with pytest.raises(ArgumentError, match="expected an integer of at least 1"):
        tokens_of(accelerated(wide_model()), random_ids(1, 9), prompt_lookup_num_tokens=number)


def test_what_drafts_cannot_be_had_for():
    ours, ids = accelerated(wide_model()), random_ids(1, 9)
    lookup = {"prompt_lookup_num_tokens": 4}
    with pytest.raises(ArgumentError, match="one text at a time, but input_ids has 2"):
        tokens_of(ours, random_ids(2, 9), **lookup)
    with pytest.raises(ArgumentError, match="drafts need the memory"):
        tokens_of(ours, ids, use_mems=False, **lookup)
    with pytest.raises(ArgumentError, match="one of both"):
        tokens_of(ours, ids, assistant_model=accelerated(wide_model()), **lookup)


@pytest.mark.parametrize(
    "config", [{"mem_len": 1}, {"reuse_len": 2}, {"same_length": True, "attn_type": "uni"}]
)
def test_no_drafts_where_steps_forget_or_are_hugging_face_s(config):
    theirs = wide_model(**config)
    expected = tokens_of(theirs, random_ids(1, 9))
    with pytest.warns(PerformanceWarning, match="drafts are not used, the tokens are the same"):
        found = tokens_of(accelerated(theirs), random_ids(1, 9), prompt_lookup_num_tokens=4)
    assert torch.equal(found, expected)


def test_an_assistant_of_another_vocabulary():
    config = wide_model().config
    with pytest.raises((ArgumentError, ValueError), match=r"vocabular|tokenizer"):
        tokens_of(
            accelerated(wide_model()), random_ids(1, 9),
            assistant_model=accelerated(wide_model(vocab_size=config.vocab_size + 1)),
        )  # fmt: skip
