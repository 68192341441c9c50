"""What ``generate`` is asked for: the right tokens, or a sentence; never others in silence."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
import torch
from generation_oracle import drive, in_float64, wide_model
from hf_parity import VOCABULARY, accelerated, random_ids, random_mems
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    WatermarkingConfig,
    XLNetLMHeadModel,
)
from transformers.generation.configuration_utils import CompileConfig

import xlnet_fast
from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.hf.families.xlnet.generation import options
from xlnet_fast.hf.families.xlnet.generation.guidance import PromptGuidance
from xlnet_fast.hf.versions import MEMORY_NAME
from xlnet_fast.tolerance import assert_within

TOKENS, LENGTH = 5, 6
PAD = 5
CACHE_NAME = "cache" if MEMORY_NAME == "mems" else "past_key_values"
"""Where ``generate`` takes a cache in this version."""


@pytest.fixture(autouse=True)
def _warnings_anew(monkeypatch):
    monkeypatch.setattr(options, "_WARNED_OF", set())


@pytest.fixture(scope="module")
def theirs():
    return wide_model()


@pytest.fixture(scope="module")
def ours(theirs):
    return accelerated(theirs)


def prompt(batch: int = 2, length: int = LENGTH, seed: int = 0) -> torch.Tensor:
    ids = random_ids(batch, length, seed)
    return ids.masked_fill(ids == PAD, PAD + 1)


def generate(model: Any, ids: Any = None, **given: Any) -> Any:
    """Greedy, unless told otherwise; each token is a new one, so that no wrong one hides."""
    given = {
        "max_new_tokens": TOKENS, "do_sample": False, "no_repeat_ngram_size": 1, **given,
    }  # fmt: skip
    torch.manual_seed(7)
    if ids is not None:
        given["inputs"] = ids
    return model.generate(**given)


def quiet(model: Any, *args: Any, **given: Any) -> Any:
    """No warning of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return generate(model, *args, **given)


# ---- options ----

REFUSED = {
    "paged": ({"cache_implementation": "paged"}, "paged cache, which XLNet has not"),
    "chunks": ({"prefill_chunk_size": 2}, "no prefill_chunk_size"),
    "several tokens": ({"use_mtp": True}, "no use_mtp"),
    "early exit": ({"assistant_early_exit": 1}, "no assistant_early_exit"),
    "healing": ({"token_healing": True, "tokenizer": None}, "no token_healing.*<sep> and <cls>"),
    "permutation": ({"perm_mask": torch.zeros(2, LENGTH, LENGTH)}, "no perm_mask"),
    "mapping": ({"target_mapping": torch.zeros(2, 1, LENGTH)}, "no target_mapping"),
    "two masks": (
        {"input_mask": torch.zeros(2, LENGTH), "attention_mask": torch.ones(2, LENGTH)},
        "give one of attention_mask",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(ours, case):
    given, message = REFUSED[case]
    with pytest.raises(ArgumentError, match=message):
        generate(ours, prompt(), **given)


@pytest.mark.parametrize("name", ["use_mtp", "assistant_early_exit", "token_healing"])
def test_refused_in_a_config(ours, name):
    config = GenerationConfig(max_new_tokens=3)
    setattr(config, name, 1)
    with pytest.raises(ArgumentError, match=f"no {name}"):
        ours.generate(prompt(), generation_config=config)


def test_continuous_batching_is_refused(ours):
    inputs = prompt().tolist()
    with pytest.raises(ArgumentError, match=r"generate_batch\(\).*paged cache"):
        ours.generate_batch(inputs, max_new_tokens=3)
    with pytest.raises(ArgumentError, match=r"continuous batching.*paged cache"):
        ours.init_continuous_batching()


IGNORED = {
    "cache_implementation": {"cache_implementation": "static"},
    "compile_config": {"compile_config": CompileConfig()},
    "use_cache": {"use_cache": False},
    "negative_prompt_ids": {"negative_prompt_ids": torch.ones(2, 3, dtype=torch.int64)},
    "labels": {"labels": torch.ones(2, LENGTH, dtype=torch.int64)},
    CACHE_NAME: {CACHE_NAME: DynamicCache()},
}
if hasattr(GenerationConfig(), "speculation_type"):
    IGNORED["speculation_type"] = {"speculation_type": "dflash"}


@pytest.mark.parametrize("name", IGNORED)
def test_ignored_with_a_warning_once(theirs, ours, name):
    expected = generate(theirs, prompt())
    with pytest.warns(UserWarning, match=name) as told:
        assert torch.equal(generate(ours, prompt(), **IGNORED[name]), expected)
    assert __file__ in [x.filename for x in told]
    assert torch.equal(quiet(ours, prompt(), **IGNORED[name]), expected)


@pytest.mark.parametrize("name", ["dynamic", "quantized", "offloaded", "offloaded_static"])
def test_every_implementation_of_a_cache_changes_nothing(theirs, ours, name):
    with pytest.warns(UserWarning, match=name):
        tokens = generate(ours, prompt(), cache_implementation=name)
    assert torch.equal(tokens, generate(theirs, prompt()))


def test_a_plain_call_says_nothing(theirs, ours):
    assert torch.equal(quiet(ours, prompt()), generate(theirs, prompt()))


def test_a_cache_of_another_text(ours):
    cache = DynamicCache()
    cache.update(torch.zeros(2, 2, 4, 8), torch.zeros(2, 2, 4, 8), 0)
    with pytest.raises(ArgumentError, match="holds 4 tokens, which XLNet would not see"):
        generate(ours, prompt(), **{CACHE_NAME: cache})
    with pytest.raises(ArgumentError, match="is a dict, but XLNet remembers in mems"):
        generate(ours, prompt(), past_key_values={})


def test_a_length_that_is_not_said(ours):
    with pytest.raises(ValueError, match="`max_length` is set to -1"):
        wide_model().generate(prompt())
    with pytest.warns(UserWarning, match="20 tokens, Hugging Face's default"):
        tokens = ours.generate(prompt(), do_sample=False)
    assert torch.equal(tokens, ours.generate(prompt(), do_sample=False, max_new_tokens=20))
    assert ours.generate(prompt(), max_length=8).shape == (2, 8)
    config = GenerationConfig(max_length=9)
    assert quiet(ours, prompt(), generation_config=config, max_new_tokens=None).shape == (2, 9)


@pytest.mark.parametrize("tokens", [0, -1])
def test_no_tokens(ours, tokens):
    with pytest.raises(ValueError, match=r"max_new_tokens.* must be greater than 0"):
        generate(ours, prompt(), max_new_tokens=tokens)


RIGHT = {
    "watermark": {"watermarking_config": WatermarkingConfig(bias=4.0, seeding_scheme="lefthash")},
    "compile": {"disable_compile": True},
    "memory and none": {"use_mems": False},
    "guidance of 1": {"guidance_scale": 1.0},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
}


@pytest.mark.parametrize("case", RIGHT)
def test_right_as_it_is(theirs, ours, case):
    assert torch.equal(
        quiet(ours, prompt(), **RIGHT[case]), generate(theirs, prompt(), **RIGHT[case])
    )


OF_THE_HUB = {
    "dola": ({"dola_layers": "high"}, "dola_layers.*two streams"),
    "contrastive": ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha.*cache of keys"),
    "diverse": (
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, "num_beam_groups.*mems",
    ),
    "constrained": ({"num_beams": 4, "force_words_ids": [[3]]}, "constrained beams.*mems"),
}  # fmt: skip


@pytest.mark.parametrize("case", OF_THE_HUB)
def test_what_moved_to_the_hub(ours, case):
    """Its code hands ``generate`` a loop of its own, which reorders what was named otherwise."""
    given, message = OF_THE_HUB[case]
    with pytest.raises(ValueError, match="requires `trust_remote_code=True`"):
        generate(ours, prompt(), **given)

    def loop(model, input_ids, **kwargs):
        return input_ids

    if "num_beams" not in given or MEMORY_NAME == "mems":
        with pytest.raises(ArgumentError, match=message):
            generate(ours, prompt(), custom_generate=loop, **given)
    else:
        assert len(generate(ours, prompt(), custom_generate=loop, **given)) == 8
    if "num_beams" in given:
        given = {**given, "use_mems": False}
        assert len(generate(ours, prompt(), custom_generate=loop, **given)) == 8


def test_a_loop_of_the_users_own(theirs, ours):
    def loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        return model._sample(
            input_ids, logits_processor, stopping_criteria, generation_config, **kwargs
        )

    tokens = quiet(ours, prompt(), custom_generate=loop)
    assert torch.equal(tokens, generate(theirs, prompt()))


def test_a_loop_from_the_hub_has_a_reading_of_its_own(ours, monkeypatch):
    monkeypatch.setattr(
        type(ours), "load_custom_generate", lambda *a, **k: lambda model, **given: given
    )
    given = generate(ours, [[1]], custom_generate="some/where", token_healing=True)
    assert given["inputs"] == [[1]]
    assert given["token_healing"] is True


def test_signature_and_text_are_hugging_faces(ours):
    assert inspect.signature(ours.generate) == inspect.signature(
        XLNetLMHeadModel.generate.__get__(ours)
    )
    assert ours.generate.__doc__ == XLNetLMHeadModel.generate.__doc__


def test_after_restore_generate_is_hugging_faces():
    model = wide_model()
    xlnet_fast.restore(xlnet_fast.accelerate(model))
    assert type(model).generate is XLNetLMHeadModel.generate
    assert generate(model, prompt(), perm_mask=torch.zeros(1)).shape == (2, LENGTH + TOKENS)


# ---- ids ----

BAD_IDS = {
    "no tokens": (torch.zeros(2, 0, dtype=torch.int64), r"shape \(2, 0\).*at least one"),
    "no texts": (torch.zeros(0, 3, dtype=torch.int64), r"shape \(0, 3\).*at least one"),
    "one dimension": (torch.zeros(3, dtype=torch.int64), r"shape \(3,\), expected \(B, I\)"),
    "three": (torch.zeros(1, 2, 3, dtype=torch.int64), r"shape \(1, 2, 3\), expected \(B, I\)"),
    "float": (torch.ones(2, 3), r"dtype torch\.float32, expected integers"),
    "bool": (torch.ones(2, 3, dtype=torch.bool), r"dtype torch\.bool, expected integers"),
    "list": ([[7, 8]], "is a list, expected a tensor"),
    "all of a tokenizer's": ({"input_ids": prompt()}, r"is a dict.*generate\(\*\*inputs\)"),
}


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("case", BAD_IDS)
def test_bad_ids(ours, case, by_name):
    ids, message = BAD_IDS[case]
    with pytest.raises(ArgumentError, match=message):
        generate(ours, **{"input_ids" if by_name else "inputs": ids})


@pytest.mark.parametrize("bad", [-1, VOCABULARY])
def test_ids_outside_the_vocabulary(ours, bad):
    ids = prompt()
    ids[0, 1] = bad
    with pytest.raises(IndexError, match="expected 0 to 49"):
        generate(ours, ids)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_other_integers(theirs, ours, dtype):
    ids, plain = prompt().to(dtype), {"no_repeat_ngram_size": 0}
    assert torch.equal(quiet(ours, ids, **plain), generate(theirs, ids, **plain))
    assert torch.equal(quiet(ours, input_ids=ids), generate(theirs, prompt()))


def test_no_ids_begin_with_bos(theirs, ours):
    begin = torch.tensor([[theirs.config.bos_token_id]])
    assert torch.equal(quiet(ours), generate(theirs, begin))


# ---- padding ----


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Two texts, the second two tokens shorter, and their mask."""
    ids, mask = prompt(), torch.ones(2, LENGTH, dtype=torch.int64)
    ids[1] = torch.cat([ids[1, 2:], ids[1, :2]]) if side == "right" else ids[1]
    hidden = slice(0, 2) if side == "left" else slice(LENGTH - 2, LENGTH)
    ids[1, hidden], mask[1, hidden] = PAD, 0
    return ids, mask


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("form", ["mask", "input_mask", "bool", "float", "pad tokens"])
def test_padding_on_the_left(theirs, ours, form, beams):
    ids, mask = padded("left")
    given = {
        "mask": {"attention_mask": mask},
        "input_mask": {"input_mask": 1.0 - mask},
        "bool": {"attention_mask": mask.bool()},
        "float": {"attention_mask": mask.float()},
        "pad tokens": {},
    }[form]
    tokens = quiet(ours, ids, num_beams=beams, no_repeat_ngram_size=0, **given)
    alone = generate(theirs, ids[1:, 2:], num_beams=beams, no_repeat_ngram_size=0)
    assert torch.equal(tokens[1:, 2:], alone)


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("rows", [slice(0, 2), slice(1, 2)], ids=["batch", "alone"])
@pytest.mark.parametrize("said", [True, False])
def test_padding_on_the_right(ours, rows, said, beams):
    ids, mask = padded("right")
    given = {"attention_mask": mask[rows]} if said else {}
    number = 1 if rows.start == 0 else 0
    with pytest.raises(ArgumentError, match=f"last token of text {number}, .*pad on the left"):
        generate(ours, ids[rows], num_beams=beams, **given)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_mask_that_hides_a_text(ours, value):
    mask = torch.ones(2, LENGTH)
    mask[0] = value
    with pytest.raises(ArgumentError, match="last token of text 0"):
        generate(ours, prompt(), attention_mask=mask)


@pytest.mark.parametrize("name", ["attention_mask", "input_mask"])
@pytest.mark.parametrize(
    "shape", [(2, 5), (2, 7), (3, 6), (6,), (2, 1, 6, 6), (2, 6, 6), (2, 1)], ids=str
)
def test_masks_of_another_shape(ours, shape, name):
    with pytest.raises(ShapeError, match=rf"{name} has shape .*input_ids: \(2, 6\)"):
        generate(ours, prompt(), **{name: torch.ones(shape)})


def test_a_mask_that_is_no_tensor(ours):
    with pytest.raises(ArgumentError, match="attention_mask is a list"):
        generate(ours, prompt(), attention_mask=[[1] * LENGTH] * 2)


@pytest.mark.parametrize("beams", [1, 2])
def test_one_mask_for_all(ours, beams):
    ids, mask = padded("left")
    expected = generate(ours, ids, num_beams=beams, attention_mask=mask[1:].repeat(2, 1))
    assert torch.equal(generate(ours, ids, num_beams=beams, attention_mask=mask[1:]), expected)


@pytest.mark.parametrize("tokens", [{"pad_token_id": None}, {"eos_token_id": [2, PAD]}])
def test_padding_that_nobody_knows_of(ours, tokens):
    given = {"eos_token_id": 2, **tokens}
    with pytest.warns(UserWarning, match="padding is read as text") as told:
        generate(ours, prompt(), **given)
    assert __file__ in [x.filename for x in told]
    options._WARNED_OF.clear()
    quiet(ours, prompt(1), **given)
    quiet(ours, prompt(), attention_mask=torch.ones(2, LENGTH), **given)


# ---- segments ----


def test_one_segment_says_nothing(theirs, ours):
    """What XLNet's tokenizer gives for a text without special tokens, padding being segment 3."""
    ids, mask = padded("left")
    types = torch.where(mask == 0, 3, 0)
    expected = generate(ours, ids, attention_mask=mask)
    for value in (types, torch.where(mask == 0, 3, 1), types.new_zeros(1, LENGTH)):
        given = {"token_type_ids": value, "attention_mask": mask}
        assert torch.equal(quiet(ours, ids, **given), expected)
    with pytest.raises(RuntimeError):
        generate(theirs, ids, token_type_ids=types)


@pytest.mark.parametrize("beams", [1, 2])
def test_segments_without_memory(theirs, ours, beams):
    """HF takes them with one column more, which it repeats for each token."""
    types = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0]])
    longer = torch.cat([types, types[:, -1:]], dim=1)
    given = {"use_mems": False, "num_beams": beams}
    expected = generate(theirs, prompt(), token_type_ids=longer, **given)
    assert not torch.equal(expected, generate(theirs, prompt(), **given))
    for value in (types, longer):
        assert torch.equal(quiet(ours, prompt(), token_type_ids=value, **given), expected)
    one = generate(theirs, prompt(), token_type_ids=longer, max_new_tokens=1)
    assert torch.equal(quiet(ours, prompt(), token_type_ids=types, max_new_tokens=1), one)


def test_bad_segments(ours):
    with pytest.raises(ShapeError, match=r"token_type_ids has shape \(2, 3\).*\(2, 6\)"):
        generate(ours, prompt(), token_type_ids=torch.zeros(2, 3))
    types = torch.tensor([[0, 0, 1, 1, 1, 1]] * 2)
    with pytest.raises(ArgumentError, match="memory knows no segments"):
        generate(ours, prompt(), token_type_ids=types)


# ---- memory ----

BAD_MEMORY = {
    "layers": (random_mems(2, LENGTH)[:1], "has 1 entries, expected one per layer: 2"),
    "too many": (random_mems(2, LENGTH) * 2, "has 4 entries, expected one per layer: 2"),
    "batch": (random_mems(1, LENGTH), r"shape \(6, 1, 16\), expected \(6, 2, 16\)"),
    "width": ([x[..., :8] for x in random_mems(2, LENGTH)], r"\(6, 2, 8\), expected \(6, 2, 16\)"),
    "integers": ([x.long() for x in random_mems(2, LENGTH)], "expected a floating dtype"),
    "dimensions": ([x[0] for x in random_mems(2, LENGTH)], r"shape \(2, 16\), expected"),
}


@pytest.mark.parametrize("name", ["mems", "past_key_values"])
@pytest.mark.parametrize("case", BAD_MEMORY)
def test_bad_memory(ours, case, name):
    memory, message = BAD_MEMORY[case]
    with pytest.raises(ArgumentError, match=message):
        generate(ours, prompt(), **{name: memory})


def test_memory_shorter_than_its_prompt(ours):
    """HF reads the last two tokens alone, and the memory for all before: some nowhere."""
    with pytest.raises(ArgumentError, match="remembers 4 tokens and input_ids has 6"):
        generate(ours, prompt(), **{MEMORY_NAME: random_mems(2, 4)})
    short = accelerated(wide_model(mem_len=4))
    with pytest.warns(UserWarning, match="the last two of input_ids"):
        generate(short, prompt(), **{MEMORY_NAME: random_mems(2, 4)})


@pytest.mark.parametrize("form", [tuple, list, torch.stack])
@pytest.mark.parametrize("name", ["mems", "past_key_values"])
@pytest.mark.parametrize("beams", [1, 2])
def test_going_on_from_memory_of_the_prompt(theirs, ours, name, form, beams):
    with torch.no_grad():
        memory = theirs(prompt(), use_mems=True).mems
    given = {"num_beams": beams}
    if name == "mems" != MEMORY_NAME:  # of an earlier text
        memory = tuple(layer[:3] for layer in memory)
        expected = generate(theirs, prompt()[:, 3:], mems=repeat(memory, beams), **given)
        tokens = generate(ours, prompt()[:, 3:], mems=form(memory), **given)
    else:
        expected = generate(theirs, prompt(), **{MEMORY_NAME: list(repeat(memory, beams))}, **given)
        tokens = generate(ours, prompt(), **{name: form(memory)}, **given)
        by_hand = {name: form(repeat(memory, beams))}
        assert torch.equal(generate(ours, prompt(), **by_hand, **given), expected)
    assert torch.equal(tokens, expected)
    assert torch.equal(
        generate(ours, prompt(), mems=None, past_key_values=None), generate(theirs, prompt())
    )


def test_memory_that_may_be_of_an_earlier_text(ours):
    """Of another length than the prompt: told once, at the line that called."""
    with pytest.warns(UserWarning, match="the last two of input_ids") as told:
        generate(ours, prompt(), **{MEMORY_NAME: random_mems(2, 8)})
    assert __file__ in [x.filename for x in told]


def repeat(memory: Any, times: int) -> tuple[torch.Tensor, ...]:
    return tuple(layer.repeat_interleave(times, dim=1) for layer in memory)


@pytest.mark.parametrize("form", ["Memory", "state"])
def test_beams_go_on_from_memory_that_knows_more(ours, form):
    """Padding, or keys and values, which a list of tensors has not."""
    ids, name = prompt(), "mems"
    if form == "Memory":
        with torch.no_grad():
            memory = xlnet_fast.Memory(ours(ids, use_mems=True).mems, None)
    else:
        name = MEMORY_NAME
        first = generate(ours, ids, return_dict_in_generate=True)
        ids, memory = first.sequences, first[CACHE_NAME]
    expected = generate(ours, ids, num_beams=2, **{name: list(memory)})
    assert torch.equal(generate(ours, ids, num_beams=2, **{name: memory}), expected)


def test_no_memory_in_a_layer_is_no_memory(theirs, ours):
    tokens = quiet(ours, prompt(), mems=[None, None])
    assert torch.equal(tokens, generate(theirs, prompt()))


# ---- guidance ----

SCALE = 1.7


def driven(
    model: Any, ids: torch.Tensor, chosen: torch.Tensor, use_mems: bool | None = None
) -> list[torch.Tensor]:
    """(B, V) logits of each step of HF's code; before transformers 5 it counts positions."""
    positions = torch.arange(ids.shape[1])
    return drive(model, ids, chosen, use_mems, cache_position=positions)[0]


class Guided(LogitsProcessor):
    """The formula, each text read anew with HF's code by the memory's own steps, in float64."""

    def __init__(self, model: Any, second: torch.Tensor, use_mems: bool | None) -> None:
        self.model, self.second, self.use_mems = in_float64(model), second, use_mems
        self.length: int | None = None

    def __call__(self, ids, scores):
        self.length = self.length or ids.shape[1]
        second = self.second.repeat_interleave(len(ids) // len(self.second), 0)
        made = ids[:, self.length :]
        chosen = torch.cat([made, made.new_zeros(len(ids), 1)], dim=1)
        logits = driven(self.model, second, chosen, self.use_mems)[-1].log_softmax(-1)
        first = scores.double().log_softmax(-1)
        return (SCALE * (first - logits) + logits).float()


@pytest.mark.parametrize("use_mems", [None, False])
@pytest.mark.parametrize("second", ["none", "a prompt"])
@pytest.mark.parametrize("strategy", ["greedy", "several", "beams"])
def test_guidance(theirs, ours, strategy, second, use_mems):
    """HF's own takes the logits of a token that was just read."""
    given = {
        "greedy": {},
        "several": {"do_sample": True, "num_return_sequences": 3, "top_k": 5},
        "beams": {"num_beams": 2},
    }[strategy] | {"use_mems": use_mems, "no_repeat_ngram_size": 0}
    negative = {} if second == "none" else {"negative_prompt_ids": prompt(seed=3)[:, :4]}
    wanted = {"guidance_scale": SCALE, **negative, **given}
    if strategy == "beams" and use_mems is None:
        with pytest.raises(ArgumentError, match=r"guidance_scale with num_beams.*use_mems=False"):
            generate(ours, prompt(), **wanted)
        return
    ids = negative.get("negative_prompt_ids", prompt()[:, -1:])
    oracle = LogitsProcessorList([Guided(theirs, ids, use_mems)])
    expected = generate(theirs, prompt(), logits_processor=oracle, **given)
    tokens = quiet(ours, prompt(), **wanted)
    assert torch.equal(tokens, expected)
    assert not torch.equal(generate(theirs, prompt(), **given), expected)


def test_scores_of_guidance(theirs, ours):
    """To the tolerance rule, in fp32."""
    negative = prompt(seed=3)[:, :4]
    wanted = {"guidance_scale": SCALE, "negative_prompt_ids": negative}
    wanted |= {"return_dict_in_generate": True, "output_scores": True, "no_repeat_ngram_size": 0}
    out = generate(ours, prompt(), **wanted)
    chosen = out.sequences[:, LENGTH:]
    exact, eager = (
        torch.stack([
            SCALE * (a.log_softmax(-1) - b.log_softmax(-1)) + b.log_softmax(-1)
            for a, b in zip(
                driven(model, prompt(), chosen), driven(model, negative, chosen), strict=True
            )
        ])
        for model in (in_float64(theirs), theirs)
    )  # fmt: skip
    assert_within(torch.stack(out.scores), eager, exact, "guided scores")


@pytest.mark.parametrize("cached", [False, True])
def test_drafts_are_guided_too(ours, cached):
    """HF tries drafts with the processors, ahead of the text and again."""
    given = {"guidance_scale": SCALE, "negative_prompt_ids": prompt(1, 4, seed=3)}
    given |= {"max_new_tokens": 12, "no_repeat_ngram_size": 0}
    if cached:
        given |= {CACHE_NAME: DynamicCache()}
    ids = prompt(1).repeat(1, 2)
    expected = generate(ours, ids, **given)
    assert torch.equal(generate(ours, ids, prompt_lookup_num_tokens=3, **given), expected)


def test_the_order_of_calls_does_not_count(ours):
    ids, scores = prompt(2, 12), torch.zeros(2, VOCABULARY)

    def guided():
        return PromptGuidance(SCALE, ours, LENGTH, prompt(seed=3), None, None, ahead=1)

    straight, mixed = guided(), guided()
    with torch.no_grad():
        expected = [straight(ids[:, :end], scores) for end in range(LENGTH, 13)]
        for end in (LENGTH + 4, LENGTH, LENGTH + 1, LENGTH + 1, 12, LENGTH + 2, 11):
            torch.testing.assert_close(mixed(ids[:, :end], scores), expected[end - LENGTH])


def test_padding_of_the_second_prompt(ours):
    second, mask = padded("left")
    wanted = {"guidance_scale": SCALE}
    together = quiet(
        ours, prompt(), negative_prompt_ids=second, negative_prompt_attention_mask=mask, **wanted
    )
    alone = quiet(ours, prompt()[1:], negative_prompt_ids=second[1:, 2:], **wanted)
    assert torch.equal(together[1:], alone)
    with pytest.raises(ArgumentError, match="negative_prompt_attention_mask hides the last token"):
        generate(
            ours, prompt(), negative_prompt_ids=second,
            negative_prompt_attention_mask=mask.flip(1), **wanted,
        )  # fmt: skip


def test_bad_second_prompts(ours):
    def guided(**given):
        return generate(ours, prompt(), guidance_scale=SCALE, **given)

    with pytest.raises(ShapeError, match=r"negative_prompt_ids has shape \(2, 0\)"):
        guided(negative_prompt_ids=prompt()[:, :0])
    with pytest.raises(ShapeError, match="negative_prompt_ids has 3 texts"):
        guided(negative_prompt_ids=prompt(3))
    with pytest.raises(ShapeError, match=r"attention_mask has shape \(2, 3\).*\(2, 6\)"):
        guided(negative_prompt_ids=prompt(), negative_prompt_attention_mask=torch.ones(2, 3))


# ---- cost ----


def test_the_checks_look_at_no_value(ours):
    """On the meta device there is none to look at."""
    ids, mask = prompt().to("meta"), torch.ones(2, LENGTH, device="meta")
    check = ours._CheckedRequests__check_arguments
    asked = options.options_of({}, ours.generation_config)
    given = {"attention_mask": mask, "mems": [x.to("meta") for x in random_mems(2, LENGTH)]}
    check(ids, given, asked)
    check(ids, {"input_mask": mask}, asked)
    with pytest.raises(RuntimeError):
        check(ids, {"token_type_ids": ids}, asked)
