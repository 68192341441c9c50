"""Texts of unequal length side by side: each as alone, in memory, generation and pooling."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings

import pytest
import torch
from hf_parity import (
    CLASSES,
    F64,
    VOCABULARY,
    accelerated,
    assert_tight,
    hf_in,
    one_hot_targets,
    random_ids,
    random_mems,
    run,
    tiny_model,
)
from transformers import (
    XLNetForMultipleChoice,
    XLNetForSequenceClassification,
    XLNetLMHeadModel,
)

from xlnet_fast import ArgumentError, Memory, ShapeError
from xlnet_fast.hf.families.xlnet import heads

SEGMENT = 4
LENGTHS = [11, 8, 5, 2]
"""Of the texts, in tokens: segments of 4 end the last ones early."""


def texts() -> list[torch.Tensor]:
    return [random_ids(1, length, seed=length)[0] for length in LENGTHS]


def segments_of(text: torch.Tensor) -> list[torch.Tensor]:
    """The first one is the short one, as padding on the left makes it."""
    first = (len(text) - 1) % SEGMENT + 1
    return [text[:first], *(part for part in text[first:].split(SEGMENT) if len(part))]


def alone(model, text):
    """Hidden states (I, H) of the text, segment by segment."""
    mems, states = None, []
    for segment in segments_of(text):
        output = model(segment[None], mems=mems, use_mems=True)
        mems = output.mems
        states.append(output.last_hidden_state[0])
    return torch.cat(states)


@pytest.mark.parametrize("attn_type", ["bi", "uni"])
@pytest.mark.parametrize(("mem_len", "reuse_len"), [(None, None), (5, None), (6, 3)])
def test_memory_hides_its_padding_and_texts_end(mem_len, reuse_len, attn_type):
    model = tiny_model(dtype=F64, mem_len=mem_len, reuse_len=reuse_len, attn_type=attn_type)
    ours, reading = accelerated(model), [segments_of(text) for text in texts()]
    reuse_all = reuse_len is None
    collected = {number: [] for number in range(len(reading))}
    memory, rows = Memory(), list(range(len(reading)))
    for step in range(max(map(len, reading))):
        going = [n for n in rows if step < len(reading[n])]
        memory = memory.select([rows.index(n) for n in going])
        rows = going
        ids = torch.zeros(len(rows), SEGMENT, dtype=torch.int64)
        mask = torch.zeros(len(rows), SEGMENT)
        for b, number in enumerate(rows):
            part = reading[number][step]
            ids[b, SEGMENT - len(part) :] = part
            mask[b, SEGMENT - len(part) :] = 1
        output = ours(ids, attention_mask=mask, mems=memory, use_mems=True)
        memory = output.mems
        assert isinstance(memory, Memory)
        for b, number in enumerate(rows):
            real = len(reading[number][step])
            collected[number].append(output.last_hidden_state[b, SEGMENT - real :])
    for number, text in enumerate(texts()):
        if not reuse_all and len(segments_of(text)[0]) < SEGMENT:
            continue  # of a padded first segment other tokens are remembered than of the text alone
        expected = alone(hf_in(model, F64), text)
        torch.testing.assert_close(torch.cat(collected[number]), expected, atol=1e-11, rtol=0)


@pytest.mark.parametrize("name", ["attention_mask", "input_mask"])
def test_a_mask_of_memory_and_tokens(name):
    ours = accelerated(tiny_model(dtype=F64))
    ids, padded = random_ids(2, SEGMENT), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    remembering = ours(ids, attention_mask=padded, mems=Memory(), use_mems=True).mems
    expected = ours(ids, mems=remembering)
    whole = torch.cat([padded, torch.ones_like(padded)], dim=1)
    whole = whole if name == "attention_mask" else 1 - whole
    given = ours(ids, mems=tuple(remembering), **{name: whole})
    assert torch.equal(given.last_hidden_state, expected.last_hidden_state)
    forgetting = ours(ids, mems=tuple(remembering))
    assert not torch.equal(forgetting.last_hidden_state, expected.last_hidden_state)
    assert not isinstance(given.mems, Memory)


def test_memory_without_padding_is_hugging_faces():
    ours = accelerated(tiny_model(dtype=F64))
    ids = random_ids(2, SEGMENT)
    first, second = ours(ids, use_mems=True), ours(ids, mems=Memory(), use_mems=True)
    assert second.mems.padding is None
    again = ours(ids, mems=second.mems)
    assert torch.equal(again[0], ours(ids, mems=first.mems)[0])
    assert ours(ids, mems=Memory(), use_mems=False).mems is None


def test_memory_is_copied_pickled_and_selected():
    layers = [torch.randn(3, 2, 4) for _ in range(2)]
    memory = Memory(layers, torch.tensor([[True, False, False], [False] * 3]))
    for other in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        assert torch.equal(other.padding, memory.padding)
        assert torch.equal(other[1], memory[1])
    chosen = memory.select([1])
    assert torch.equal(chosen[0], layers[0][:, 1:])
    assert torch.equal(chosen.padding, memory.padding[1:])
    assert Memory().select([0]) == ()
    assert memory.select([]).padding.shape == (0, 3)
    for alive in ([False, True], torch.tensor([False, True])):
        assert torch.equal(memory.select(alive)[1], layers[1][:, 1:])
    assert memory.to(torch.float64)[0].dtype == F64
    assert torch.equal(memory.to(torch.float64).padding, memory.padding)


def test_memory_refuses_what_would_lose_its_padding_or_texts():
    layers = [torch.randn(3, 2, 4)]
    memory = Memory(layers, None)
    with pytest.raises(ArgumentError, match="would lose it"):
        type(memory)(layer for layer in memory)  # as accelerate converts outputs
    with pytest.raises(
        ArgumentError, match=r"padding has dtype torch.float32, expected torch.bool"
    ):
        Memory(layers, torch.zeros(2, 3))
    with pytest.raises(ShapeError, match="elements has 3 bools, expected one for each of 2"):
        memory.select([True, False, True])
    with pytest.raises(ShapeError, match="expected one dimension"):
        memory.select(torch.tensor(1))
    with pytest.raises(ArgumentError, match=r"elements has dtype torch\.float32"):
        memory.select(torch.tensor([1.0]))


@pytest.mark.parametrize("given", [Memory, tuple])
def test_generation_goes_on_from_memory(given):
    """Padding in the memory that it begins with stays hidden."""
    model = accelerated(tiny_model(XLNetLMHeadModel))
    ids, mask = random_ids(2, 6), torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6])
    memory = model(ids, attention_mask=mask, mems=Memory(), use_mems=True).mems
    memory = memory if given is Memory else tuple(memory)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    options |= {"output_scores": True, "return_dict_in_generate": True}
    prompt = random_ids(2, 3, seed=5)
    ones = torch.ones_like(prompt)
    together = model.generate(prompt, attention_mask=ones, mems=memory, **options)
    alone = model(ids[:1, 3:], use_mems=True).mems
    text = model.generate(prompt[:1], attention_mask=ones[:1], mems=alone, **options)
    same = all(
        torch.allclose(a[0], b[0], atol=1e-4)
        for a, b in zip(together.scores, text.scores, strict=True)
    )
    assert same is (given is Memory)


def test_padding_that_does_not_fit_its_memory():
    ours = accelerated(tiny_model())
    memory = ours(random_ids(2, SEGMENT), use_mems=True).mems
    wrong = Memory(memory, torch.zeros(2, SEGMENT + 1, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"mems.padding has shape \(2, 5\), expected \(2, 4\)"):
        ours(random_ids(2, SEGMENT), mems=wrong)


# ---- generation ----


@pytest.mark.parametrize("attn_type", ["bi", "uni"])
@pytest.mark.parametrize("mem_len", [None, 4])
@pytest.mark.parametrize("use_mems", [True, False])
@pytest.mark.parametrize("strategy", [{}, {"num_beams": 2}], ids=["greedy", "beam"])
def test_padded_prompts_go_on_as_each_alone(strategy, use_mems, mem_len, attn_type):
    model = tiny_model(XLNetLMHeadModel, attn_type=attn_type, mem_len=mem_len)
    ids = random_ids(3, 7)
    mask = torch.ones(3, 7, dtype=torch.int64)
    mask[0, :2] = mask[2, :5] = 0
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "use_mems": use_mems}
    options |= {"output_scores": True, "return_dict_in_generate": True, **strategy}
    batch = accelerated(model).generate(ids, attention_mask=mask, **options)
    if strategy and attn_type == "uni":
        model = accelerated(model)  # Hugging Face's own raises for more than one beam
    for row in range(3):
        prompt = ids[row : row + 1, 7 - int(mask[row].sum()) :]
        expected = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        assert torch.equal(batch.sequences[row, 7:], expected.sequences[0, -5:])
        if not strategy:
            for ours, theirs in zip(batch.scores, expected.scores, strict=True):
                torch.testing.assert_close(ours[row], theirs[0], atol=1e-4, rtol=1e-4)


def test_prompts_without_padding_go_on_as_ever():
    model = tiny_model(XLNetLMHeadModel, reuse_len=3, mem_len=4)
    ids = random_ids(2, 6) % VOCABULARY
    ids[ids == model.config.pad_token_id] = 0
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    expected = model.generate(ids, **options)
    assert torch.equal(accelerated(model).generate(ids, **options), expected)


# ---- the summary of a text ----


def sides(ids, mask):
    """Arguments of the same texts padded on the left and on the right."""
    left = {"input_ids": ids, "attention_mask": mask}
    shifts = (mask == 0).sum(-1, keepdim=True)
    index = (torch.arange(ids.shape[-1]) + shifts) % ids.shape[-1]
    return left, {"input_ids": ids.gather(-1, index), "attention_mask": mask.gather(-1, index)}


@pytest.mark.parametrize("kind", ["last", "first", "mean", "cls_index"])
@pytest.mark.parametrize("cls", [XLNetForSequenceClassification, XLNetForMultipleChoice])
def test_a_summary_of_real_tokens_does_not_see_padding(cls, kind):
    model = tiny_model(cls, F64, summary_type=kind)
    ours = accelerated(model, summarize_real_tokens=True)
    ids = random_ids(3, 7)
    mask = torch.ones(3, 7)
    mask[0, :2] = mask[2, :5] = 0
    given = sides(ids, mask)
    if cls is XLNetForMultipleChoice:
        given = [{name: x[:, None] for name, x in each.items()} for each in given]
    inverse = dict(given[1])
    inverse["input_mask"] = 1 - inverse.pop("attention_mask")
    halves = {**given[1], "attention_mask": given[1]["attention_mask"].clamp(min=0.5)}
    for padded in (*given, inverse, halves):
        logits = ours(**padded).logits
        for row in range(3):
            text = ids[row : row + 1, 7 - int(mask[row].sum()) :]
            alone = hf_in(model, F64)(text[:, None] if cls is XLNetForMultipleChoice else text)
            torch.testing.assert_close(logits[row], alone.logits[0], atol=1e-11, rtol=0)


@pytest.mark.parametrize("kind", ["last", "first", "mean"])
def test_a_summary_of_real_tokens_in_every_form_of_the_mask(kind):
    model = tiny_model(XLNetForSequenceClassification, F64, summary_type=kind, mem_len=None)
    ours = accelerated(model, summarize_real_tokens=True)
    ids, mask = random_ids(2, 5), torch.tensor([[1, 1, 1, 0, 0]])
    expected = ours(ids, attention_mask=mask.expand(2, -1)).logits
    assert torch.equal(ours(ids, attention_mask=mask).logits, expected)
    mems = [m.double() for m in random_mems(2, 3)]
    whole = torch.cat([torch.ones(2, 3), mask.expand(2, -1)], dim=1)
    with_memory = ours(ids, attention_mask=mask, mems=mems).logits
    assert torch.equal(ours(ids, attention_mask=whole, mems=mems).logits, with_memory)
    # A text of padding alone, as an empty choice is, counts as one of real tokens.
    empty = torch.tensor([[0] * 5, [1] * 5])
    results = run(ours, {"input_ids": ids, "attention_mask": empty})
    assert_tight(results, run(hf_in(model, F64), {"input_ids": ids, "attention_mask": empty}))
    # One program for other batches.
    ours.requires_grad_(False)
    program = torch.jit.trace(
        lambda i, m: ours(i, attention_mask=m, return_dict=False, use_mems=False)[0],
        (ids[:1], torch.ones(1, 5)), check_trace=False,
    )  # fmt: skip
    many, masks = random_ids(3, 7), torch.ones(3, 7)
    masks[1, 4:] = 0
    expected = ours(many, attention_mask=masks).logits
    torch.testing.assert_close(program(many, masks), expected, atol=1e-11, rtol=0)


def test_the_summary_is_hugging_faces_by_default_with_one_warning(monkeypatch):
    monkeypatch.setattr(heads, "_warned", set())
    model = tiny_model(XLNetForSequenceClassification, F64)
    ours = accelerated(model)
    ids, mask = random_ids(2, 5), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    left, right = sides(ids, mask)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_tight(run(ours, left), run(hf_in(model, F64), left))
        run(ours, {"input_ids": ids})
    with pytest.warns(UserWarning, match=r"summary_type='last'\) has padding in it"):
        output = ours(**right)
    torch.testing.assert_close(output.logits, model(**right).logits, atol=1e-11, rtol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours(**right)


def test_a_summary_under_a_target_mapping_is_that_of_its_rows():
    model = tiny_model(XLNetForSequenceClassification, F64)
    ids, mask = random_ids(2, 5), torch.ones(2, 5)
    inputs = {"input_ids": ids, "attention_mask": mask}
    inputs["target_mapping"] = one_hot_targets([[3, 1]] * 2, 5).double()
    expected = run(hf_in(model, F64), inputs)
    assert_tight(run(accelerated(model, summarize_real_tokens=True), inputs), expected)


@pytest.mark.parametrize("cls", CLASSES[1:])  # XLNetModel takes more
def test_trainer_reads_the_same_arguments(cls):
    """It drops the columns that ``forward`` does not name."""
    ours = accelerated(tiny_model(cls))
    assert inspect.signature(ours.forward) == inspect.signature(tiny_model(cls).forward)
