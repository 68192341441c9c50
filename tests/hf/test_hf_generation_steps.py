"""The steps of generation against Hugging Face's own, in float64 and token for token."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from generation_oracle import drive, in_float64, wide_model
from hf_parity import accelerated, random_ids
from torch import nn
from transformers import LogitsProcessor, LogitsProcessorList

import xlnet_fast
from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.hf.families.xlnet.generation import distances, model, slots
from xlnet_fast.hf.families.xlnet.generation.parts import obstacle_to_steps
from xlnet_fast.hf.families.xlnet.generation.state import GenerationState

CONFIGS = {
    "plain": {},
    "mem_len 1": {"mem_len": 1},
    "mem_len 2": {"mem_len": 2},
    "mem_len 3": {"mem_len": 3},
    "mem_len 16": {"mem_len": 16},
    "reuse_len 1": {"reuse_len": 1},
    "reuse_len 2": {"reuse_len": 2},
    "both": {"reuse_len": 4, "mem_len": 7},
    "clamp_len": {"clamp_len": 3},
}
STEPS = 14
PAST = xlnet_fast.hf.versions._VERSION < (5, 24)


@pytest.fixture
def little_room(monkeypatch):
    """Slots and tables that have to grow every few tokens."""
    monkeypatch.setattr(slots, "_LEAST_SPARE", 3)
    monkeypatch.setattr(distances, "_BLOCK", 5)


def error(ours, theirs):
    """The largest of all errors, each as a share of what it should be."""
    return max(
        float((a - b).abs().max() / b.abs().max()) if b.numel() else 0.0
        for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("attn_type", ["bi", "uni"])
@pytest.mark.parametrize("use_mems", [True, False])
def test_logits_and_memory_are_those_of_hugging_face(little_room, config, attn_type, use_mems):
    theirs = in_float64(wide_model(attn_type=attn_type, **CONFIGS[config]))
    ours = accelerated(wide_model(attn_type=attn_type, **CONFIGS[config]).double())
    for batch, length in ((1, 1), (1, 2), (1, 8), (1, 9), (2, 5), (2, 21)):
        if attn_type == "uni" and batch > 1:
            continue  # HF raises
        ids = random_ids(batch, length)
        expected, tokens, mems = drive(theirs, ids, STEPS, use_mems)
        logits, _, state = drive(ours, ids, tokens[:, length:], use_mems)
        assert error(logits, expected) < 1e-12
        if not use_mems:
            assert state is None
            continue
        assert isinstance(state, GenerationState)
        assert [m.shape for m in state] == [m.shape for m in mems]
        assert error(state, mems) < 1e-12


@pytest.mark.parametrize(
    ("attn_type", "use_mems", "tokens"), [("bi", True, 2), ("uni", True, 2), ("uni", False, 1)]
)
def test_a_step_computes_what_is_new_alone(monkeypatch, attn_type, use_mems, tokens):
    ours = accelerated(wide_model(attn_type=attn_type))
    seen, embedding = [], torch.nn.functional.embedding

    def noted(ids, *args):
        seen.append(ids.shape[0])
        return embedding(ids, *args)

    monkeypatch.setattr(torch.nn.functional, "embedding", noted)
    drive(ours, random_ids(1, 9), 5, use_mems)
    assert seen == [9] + [tokens] * 4


@pytest.mark.parametrize("use_mems", [True, False])
@pytest.mark.parametrize("attn_type", ["bi", "uni"])
@pytest.mark.parametrize("length", [6, 12])
def test_texts_of_a_padded_batch_give_what_each_gives_alone(
    little_room, attn_type, use_mems, length
):
    theirs = in_float64(wide_model(attn_type=attn_type))
    ours = accelerated(wide_model(attn_type=attn_type).double())
    ids = random_ids(3, length)
    mask = torch.ones(3, length, dtype=torch.long)
    mask[1, :3], mask[2, : length - 1] = 0, 0
    alone = []
    for b in range(3):
        alone.append(drive(theirs, ids[b : b + 1, mask[b] > 0], STEPS, use_mems))
    tokens = torch.cat([text[:, -STEPS:] for _, text, _ in alone])
    logits, _, _ = drive(ours, ids, tokens, use_mems, attention_mask=mask)
    for b, (expected, _, _) in enumerate(alone):
        assert error([step[b : b + 1] for step in logits], expected) < 1e-12


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_padding_of_a_memory_that_a_user_hands_over(backend):
    """Of the same text where the mask is as long, and of an earlier one where it is shorter."""
    ours = accelerated(wide_model().double(), backend=backend)
    ids, mask = random_ids(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[1, :3] = 0
    key = "past_key_values" if PAST else "mems"
    with torch.no_grad():
        prepared = ours.prepare_inputs_for_generation(ids, use_mems=True, attention_mask=mask)
        memory = tuple(ours(**prepared).mems)
    tokens = random_ids(2, 5, seed=2)
    grown = torch.cat([ids, tokens[:, :1]], dim=1)
    seen = torch.cat([mask, mask[:, -1:]], dim=1)
    whole, _, _ = drive(ours, ids, tokens, True, attention_mask=mask)
    found, _, _ = drive(ours, grown, tokens[:, 1:], True, attention_mask=seen, **{key: memory})
    assert error(found, whole[1:]) < 1e-12
    short, _, _ = drive(
        ours, grown[:, -4:], tokens[:, 1:], True, attention_mask=seen[:, -4:], **{key: memory}
    )
    assert error(short, found) > 1e-3  # the memory's padding is seen


def test_padded_texts_by_the_steps_of_hugging_face():
    """As a backend by name takes them: with the mask of the memory too."""
    theirs = in_float64(wide_model(mem_len=5))
    ours = accelerated(wide_model(mem_len=5).double(), backend="reference")
    ids, mask = random_ids(2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[1, :3] = 0
    alone = [drive(theirs, ids[b : b + 1, mask[b] > 0], STEPS, True) for b in range(2)]
    tokens = torch.cat([text[:, -STEPS:] for _, text, _ in alone])
    logits, _, _ = drive(ours, ids, tokens, True, attention_mask=mask)
    for b, (expected, _, _) in enumerate(alone):
        assert error([step[b : b + 1] for step in logits], expected) < 1e-12


@pytest.mark.parametrize("padded", [False, True])
def test_another_text_without_memory(padded):
    """What was read is known by its tokens: other texts, and the same in another order."""
    ours = accelerated(wide_model(attn_type="uni").double())
    ids, mask = random_ids(3, 9), torch.ones(3, 9, dtype=torch.long)
    mask[1, :2] = 0
    if not padded:
        mask[:] = 1
    kwargs = {"use_mems": False, "attention_mask": mask[:, :7]}
    with torch.no_grad():
        outputs = ours(**ours.prepare_inputs_for_generation(ids[:, :7], **kwargs))
        kwargs["cache_position"] = torch.arange(7)
        kept = ours._update_model_kwargs_for_generation(outputs, kwargs)
        other = ids.clone()
        other[0, 3] = (other[0, 3] + 1) % 50
        changed = mask.clone()
        changed[1, :3] = 0
        order = [2, 0, 0]
        for text, seen in (
            (ids[:, :8], mask[:, :8]), (ids, mask), (ids[order], mask[order]), (other, mask),
            (ids, changed), (ids[:, :6], mask[:, :6]), (ids[:2], mask[:2]),
        ):  # fmt: skip
            found, fresh = (
                ours(
                    **ours.prepare_inputs_for_generation(
                        text, **{**memory, "use_mems": False, "attention_mask": seen}
                    )
                ).logits
                for memory in (kept, {})
            )
            assert error([found], [fresh]) < 1e-12


STRATEGIES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 20, "temperature": 0.9},
    "beam": {"num_beams": 4, "do_sample": False, "num_return_sequences": 3},
    "beam sampling": {"num_beams": 3, "do_sample": True},
    "several": {"do_sample": True, "num_return_sequences": 3, "top_p": 0.9},
    "constrained": {"do_sample": False, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("attn_type", "use_mems", "batch"),
    [("bi", True, 2), ("bi", False, 2), ("uni", True, 1), ("uni", False, 1)],
)
def test_tokens_and_scores_of_generate(little_room, strategy, attn_type, use_mems, batch):
    theirs = wide_model(attn_type=attn_type, mem_len=None if batch == 1 else 12)
    if attn_type == "uni" and "num_beams" in STRATEGIES[strategy]:
        pytest.skip("Hugging Face raises for several causal texts")
    if attn_type == "uni" and "num_return_sequences" in STRATEGIES[strategy]:
        pytest.skip("Hugging Face raises for several causal texts")
    results = []
    for each in (theirs, accelerated(theirs)):
        torch.manual_seed(7)
        results.append(
            each.generate(
                random_ids(batch, 5), max_new_tokens=25, use_mems=use_mems, output_scores=True,
                return_dict_in_generate=True, **STRATEGIES[strategy],
            )
        )  # fmt: skip
    expected, ours = results
    assert torch.equal(ours.sequences, expected.sequences)
    assert len(expected.sequences.unique()) > 6
    assert ours.keys() == expected.keys()
    for a, b in zip(ours.scores, expected.scores, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("config", ["plain", "mem_len 3", "mem_len 16", "reuse_len 1", "both"])
def test_beams_that_are_moved_in_place(little_room, config):
    """In float64, where no two beams are equally likely: the tokens, and what was remembered."""
    given = {"num_beams": 4, "do_sample": False, "max_new_tokens": 30, "use_mems": True}
    results = []
    for each in (
        in_float64(wide_model(**CONFIGS[config])),
        accelerated(wide_model(**CONFIGS[config]).double()),
    ):
        found = each.generate(random_ids(1, 7, 1), return_dict_in_generate=True, **given)
        results.append((found.sequences, found.past_key_values if PAST else found.cache))
    (expected, mems), (ours, state) = results
    assert torch.equal(ours, expected)
    assert error(state, mems) < 1e-11


@pytest.mark.parametrize("config", ["plain", "mem_len 3", "reuse_len 1"])
def test_beams_of_a_loop_of_one_s_own(config):
    """Whose earlier states stay: a state of chosen beams is a copy."""
    theirs = in_float64(wide_model(**CONFIGS[config]))
    ours = accelerated(wide_model(**CONFIGS[config]).double())
    ids, order = random_ids(3, 6), torch.tensor([2, 0, 0])
    _, tokens, mems = drive(theirs, ids, 5, True)
    _, _, state = drive(ours, ids, tokens[:, 6:], True)
    key = "past_key_values" if PAST else "mems"
    for chosen, grown in ((order, tokens[order]), (torch.arange(3), tokens)):
        results = []
        for each, memory in ((theirs, mems), (ours, state)):
            given = {key: each._reorder_cache(memory, chosen)}
            results.append(drive(each, grown, 4, True, **given)[0])
        assert error(*reversed(results)) < 1e-12


@pytest.mark.parametrize("config", ["plain", "mem_len 3", "reuse_len 1"])
def test_memory_that_a_user_hands_over(little_room, config):
    theirs = in_float64(wide_model(**CONFIGS[config]))
    ours = accelerated(wide_model(**CONFIGS[config]).double())
    with torch.no_grad():
        mems = theirs(random_ids(2, 6, seed=3), use_mems=True).mems
    name = {"mems": mems} if theirs.config.model_type and not PAST else {"past_key_values": mems}
    expected, tokens, last = drive(theirs, random_ids(2, 4), STEPS, True, **name)
    logits, _, state = drive(ours, random_ids(2, 4), tokens[:, 4:], True, **name)
    assert error(logits, expected) < 1e-12
    assert error(state, last) < 1e-12


class TestState:
    """What ``generate`` keeps and returns."""

    def states(self, ours, steps=6):
        ids, kwargs, found = random_ids(1, 5), {"use_mems": True}, []
        for _ in range(steps):
            with torch.no_grad():
                outputs = ours(**ours.prepare_inputs_for_generation(ids, **kwargs))
            key = "past_key_values" if PAST else "mems"
            kwargs = {"use_mems": True, key: outputs.mems}
            found.append((ids, outputs.mems, outputs.logits))
            ids = torch.cat([ids, outputs.logits[:, -1].argmax(-1, keepdim=True)], 1)
        return found

    def follow(self, ours, ids, state, token):
        key = "past_key_values" if PAST else "mems"
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
        with torch.no_grad():
            prepared = ours.prepare_inputs_for_generation(ids, use_mems=True, **{key: state})
            outputs = ours(**prepared)
        return ids, outputs

    @pytest.mark.parametrize("config", ["plain", "mem_len 3", "reuse_len 1", "both"])
    def test_an_earlier_state_can_be_continued_twice(self, config):
        ours = accelerated(wide_model(**CONFIGS[config]).double())
        theirs = in_float64(wide_model(**CONFIGS[config]))
        found = self.states(ours)
        for ids, state, _ in (found[2], found[2], found[0], found[4]):
            for token in (7, 8):
                grown, outputs = self.follow(ours, ids, state, token)
                expected, _, mems = drive(theirs, found[0][0], grown[:, 5:][:, :1], True)
                expected, _, mems = drive(
                    theirs, found[0][0], torch.cat([grown[:, 5:], grown[:, :1]], 1), True
                )
                assert error([outputs.logits[:, -1]], expected[-1:]) < 1e-12
                assert error(outputs.mems, mems) < 1e-12
                further, second = self.follow(ours, grown, outputs.mems, 9)
                expected, _, _ = drive(
                    theirs, found[0][0], torch.cat([further[:, 5:], grown[:, :1]], 1), True
                )
                assert error([second.logits[:, -1]], expected[-1:]) < 1e-12

    def test_it_is_a_tuple_to_whoever_looks_into_it(self):
        ours = accelerated(wide_model())
        state = self.states(ours)[-1][1]
        mems = xlnet_fast.to_mems(state)
        assert isinstance(mems, tuple)
        assert len(state) == len(mems) == 2
        assert all(map(torch.equal, state, mems))
        assert all(map(torch.equal, state[:1], mems[:1]))
        assert xlnet_fast.to_mems(list(mems)) == mems
        stored = io.BytesIO()
        torch.save(state, stored)
        for again in (
            pickle.loads(pickle.dumps(state)),
            copy.deepcopy(state),
            torch.load(io.BytesIO(stored.getvalue()), weights_only=False),
        ):
            assert type(again) is tuple
            assert all(map(torch.equal, again, mems))
        with torch.no_grad():
            a = ours(random_ids(1, 3), mems=state).logits
            assert torch.equal(a, ours(random_ids(1, 3), mems=mems).logits)
        with pytest.raises(ArgumentError, match="got a str"):
            xlnet_fast.to_mems("mems")

    def test_of_another_batch_or_model(self):
        ours = accelerated(wide_model())
        ids, state, _ = self.states(ours)[-1]
        key = "past_key_values" if PAST else "mems"
        with torch.no_grad(), pytest.raises(ShapeError, match="2 texts, but mems is of 1"):
            ours.prepare_inputs_for_generation(ids.expand(2, -1), **{key: state})
        with torch.no_grad(), pytest.raises(ArgumentError, match="another model"):
            accelerated(wide_model()).prepare_inputs_for_generation(ids, **{key: state})

    def test_tokens_that_would_be_skipped(self):
        ours = accelerated(wide_model())
        ids, state, _ = self.states(ours)[-1]
        key = "past_key_values" if PAST else "mems"
        longer = torch.cat([ids, random_ids(1, 2)], dim=1)
        with torch.no_grad():
            ours.prepare_inputs_for_generation(longer[:, :-1], **{key: state})
            with pytest.raises(ArgumentError, match="has read 10 tokens and input_ids has 12"):
                ours.prepare_inputs_for_generation(longer, **{key: state})

    @pytest.mark.parametrize("attn_type", ["bi", "uni"])
    def test_how_much_was_read_is_known_from_any_beginning(self, attn_type):
        ours = accelerated(wide_model(attn_type=attn_type))
        _, text, state = drive(ours, random_ids(1, 5), 6, True)
        assert state.told == 5 + 5
        key = "past_key_values" if PAST else "mems"
        _, _, again = drive(ours, text, 4, True, **{key: tuple(state)})
        assert again.told == 11 + 3

    def test_made_in_inference_mode(self):
        ours = accelerated(wide_model())
        with torch.inference_mode():
            _, text, state = drive(ours, random_ids(1, 5), 3, True)
        text, key = text.clone(), "past_key_values" if PAST else "mems"
        found, _, _ = drive(ours, text, 3, True, **{key: state})
        expected, _, _ = drive(ours, random_ids(1, 5), 6, True)
        assert error(found, expected[3:]) < 1e-5

    @pytest.mark.parametrize(
        "change",
        [
            lambda m: m.train(),
            lambda m: setattr(m.transformer, "mem_len", 3),
            lambda m: m.transformer.layer.__delitem__(1),
            lambda m: m.transformer.layer[0].register_forward_hook(lambda *a: None),
            lambda m: m.bfloat16(),
            lambda m: m.load_state_dict(m.state_dict()),
        ],
    )
    def test_memory_that_is_looked_at_too_late(self, change):
        ours = accelerated(wide_model())
        (_, looked, _), (_, late, _) = self.states(ours)[-2:]
        kept = xlnet_fast.to_mems(looked)
        change(ours)
        assert xlnet_fast.to_mems(looked) is kept
        with pytest.raises(ArgumentError, match="before the model changes"):
            xlnet_fast.to_mems(late)

    def test_returned_by_generate(self):
        theirs = wide_model()
        given = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True}
        expected = theirs.generate(random_ids(2, 4), **given)
        found = accelerated(theirs).generate(random_ids(2, 4), **given)
        key = "past_key_values" if PAST else "cache"
        for a, b in zip(xlnet_fast.to_mems(found[key]), expected[key], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


class Stretched(nn.Linear):
    """Not HF's."""

    def forward(self, x):
        return 1.5 * super().forward(x)


def replace_layer_1(ours):
    old = ours.transformer.layer[1].ff.layer_1
    new = Stretched(old.in_features, old.out_features).eval()
    new.load_state_dict(old.state_dict())
    ours.transformer.layer[1].ff.layer_1 = new


def replace_method(ours):
    ours._reorder_cache = lambda mems, order: mems


OBSTACLES = {
    "a hook on a layer": (
        lambda m: m.transformer.layer[1].register_forward_hook(lambda *a: None),
        "transformer.layer.1 has a hook",
    ),
    "a hook on the model": (lambda m: m.register_forward_pre_hook(lambda *a: None), "the model"),
    "training": (lambda m: m.train(), "training mode"),
    "a part in training": (lambda m: m.transformer.layer[0].ff.train(), "training mode"),
    "same_length": (lambda m: setattr(m.transformer, "same_length", True), "same_length"),
    "bi_data": (lambda m: setattr(m.transformer, "bi_data", True), "bi_data"),
    "another module": (replace_layer_1, "layer 1: ff.layer_1 is a Stretched"),
    "a method": (replace_method, "has a _reorder_cache of its own"),
    "a backend": (lambda m: xlnet_fast.accelerate(m, backend="reference"), "'reference'"),
    "dropout": (
        lambda m: setattr(m.transformer.layer[0].rel_attn, "dropout", nn.Softmax(-1).eval()),
        "layer 0: a dropout is called",
    ),
    "norm": (
        lambda m: setattr(m.transformer.layer[0].ff, "layer_norm", nn.Identity().eval()),
        "layer 0: ff.layer_norm is a Identity",
    ),
    "a method of the attention": (
        lambda m: setattr(m.transformer.layer[1].rel_attn, "post_attention", print),
        "layer 1: post_attention was replaced",
    ),
    "a method of the transformer": (
        lambda m: setattr(m.transformer, "cache_mem", print),
        "has a cache_mem of its own",
    ),
    "a norm's forward": (
        lambda m: setattr(m.transformer.layer[0].rel_attn.layer_norm, "forward", print),
        "rel_attn.layer_norm is a LayerNorm, or one with a forward of its own",
    ),
    "compiled": (
        lambda m: setattr(m.transformer.layer[0].ff, "_compiled_call_impl", print),
        "was compiled",
    ),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_keeps_the_steps_of_hugging_face(name):
    change, words = OBSTACLES[name]
    ours = accelerated(wide_model())
    assert obstacle_to_steps(ours, model.FastLMHeadModel) is None
    change(ours)
    assert words in obstacle_to_steps(ours, model.FastLMHeadModel)
    prepared = ours.prepare_inputs_for_generation(random_ids(1, 4), use_mems=True)
    assert "perm_mask" in prepared


def test_steps_of_hugging_face_where_a_gradient_is_recorded_or_autocast_is_on():
    ours, ids = accelerated(wide_model()), random_ids(1, 4)
    assert "perm_mask" in ours.prepare_inputs_for_generation(ids, use_mems=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert "perm_mask" in ours.prepare_inputs_for_generation(ids, use_mems=True)
    with torch.no_grad():
        prepared = ours.prepare_inputs_for_generation(ids, use_mems=True)
        assert "perm_mask" not in prepared
        expected = ours(**prepared).logits
    with torch.enable_grad():
        logits = ours(**prepared).logits
    torch.testing.assert_close(logits.detach(), expected)
    logits.sum().backward()
    assert bool(ours.transformer.layer[0].rel_attn.q.grad.any())


class Change(LogitsProcessor):
    """Does something to the model while it generates."""

    def __init__(self, after, action):
        self.after, self.action, self.calls = after, action, 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        if self.calls == self.after:
            self.action()
        return scores


@pytest.mark.parametrize("change", ["assigned", "a parameter", "a module", "scale", "clamp_len"])
def test_a_state_is_continued_by_the_model_as_it_is(change):
    """As HF's memory, whose rows stay while everything else is made anew."""
    results = []
    for each in (in_float64(wide_model()), accelerated(wide_model().double())):
        ids = random_ids(1, 6)
        _, _, memory = drive(each, ids, random_ids(1, 4, 3), True)
        other = wide_model(seed=2).double()
        if change == "assigned":
            each.load_state_dict(other.state_dict(), assign=True)
        elif change == "a parameter":
            each.transformer.layer[1].rel_attn.k = other.transformer.layer[1].rel_attn.k
        elif change == "a module":
            each.transformer.layer[0].ff.layer_2 = other.transformer.layer[0].ff.layer_2
        elif change == "scale":
            for layer in each.transformer.layer:
                layer.rel_attn.scale *= 0.5
        else:
            each.transformer.clamp_len = 2
        key = "past_key_values" if PAST else "mems"
        text = torch.cat([ids, random_ids(1, 4, 3)], dim=1)
        results.append(drive(each, text, random_ids(1, 3, 4), True, **{key: memory})[0])
    assert error(results[1], results[0]) < 1e-12


def test_tokens_that_are_changed_after_they_were_prepared():
    ours, ids = accelerated(wide_model()), random_ids(1, 6)
    with torch.no_grad():
        prepared = ours.prepare_inputs_for_generation(ids, use_mems=True)
        other = prepared["input_ids"].clone()
        other[0, 2] = 7
        changed = ours(**{**prepared, "input_ids": other}).logits
        ids[0, 2] = 7
        expected = ours(**ours.prepare_inputs_for_generation(ids, use_mems=True)).logits
        assert torch.equal(changed, expected)
        with pytest.raises(ShapeError, match="no dummy token"):
            ours(**{**prepared, "input_ids": other[:, 1:]})


@pytest.mark.parametrize("junk", ["abc", {"a": 1}])
def test_memory_that_is_none(junk):
    ours, key = accelerated(wide_model()), "past_key_values" if PAST else "mems"
    with torch.no_grad(), pytest.raises((TypeError, KeyError, AttributeError)):
        ours.prepare_inputs_for_generation(random_ids(1, 4), use_mems=True, **{key: junk})


@pytest.mark.parametrize("change", ["a hook", "a weight"])
def test_a_model_that_changes_while_it_generates(change):
    results = []
    for each in (wide_model(), accelerated(wide_model())):
        layer = each.transformer.layer[0]

        def hook(layer=layer):
            layer.ff.register_forward_hook(lambda m, a, out: 0.5 * out)

        def weight(layer=layer):
            with torch.no_grad():
                layer.ff.layer_2.weight.mul_(-1.5)
                layer.rel_attn.k.mul_(0.5)

        processor = Change(4, hook if change == "a hook" else weight)
        results.append(
            each.generate(
                random_ids(1, 6), max_new_tokens=14, do_sample=False,
                logits_processor=LogitsProcessorList([processor]),
            )
        )  # fmt: skip
    assert torch.equal(*results)
    unchanged = wide_model().generate(random_ids(1, 6), max_new_tokens=14, do_sample=False)
    assert not torch.equal(unchanged, results[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_of_several_dtypes(dtype):
    """HF's ``from_pretrained(dtype=...)`` leaves those of the attention in fp32."""
    mixed = wide_model().to(dtype)
    for layer in mixed.transformer.layer:
        layer.rel_attn.q.data = layer.rel_attn.q.data.float()
    whole = wide_model().to(dtype)
    tokens = [
        accelerated(m).generate(random_ids(1, 5), max_new_tokens=8, do_sample=False)
        for m in (mixed, whole)
    ]
    assert torch.equal(*tokens)


def test_explain_says_whose_steps_they_are():
    ours = accelerated(wide_model())
    assert not any("generate()" in note for note in xlnet_fast.explain(ours).notes)
    xlnet_fast.accelerate(ours, backend="reference")
    notes = [note for note in xlnet_fast.explain(ours).notes if "generate()" in note]
    assert len(notes) == 1
    assert "takes Hugging Face's steps" in notes[0]
    assert "'reference'" in notes[0]
