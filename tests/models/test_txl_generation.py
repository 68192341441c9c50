"""Generation by a Transformer-XL: recorded ids, padding, memory that goes on, work of a step."""

from __future__ import annotations

import pytest
import torch
from txl_parity import ids, model_of, recipe, recorded

from xlnet_fast.errors import ArgumentError, ShapeError

STEPS = 8


def written(model, prompt, **options):
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = recipe.PAD
    return model.generate(prompt, **{**recipe.WRITING, "max_new_tokens": STEPS, **options})


def in_float32(scores, exact):
    """``generate`` gives float32, whatever the model's dtype."""
    assert scores.shape == exact.shape
    assert float((scores - exact).abs().max()) <= 2**-24 * float(exact.abs().max())


@pytest.mark.parametrize("name", recipe.GENERATIONS)
def test_recorded_ids(name):
    set_name, shape, _ = recipe.GENERATIONS[name]
    found = recipe.generate(model_of(set_name), name)
    expected = recorded()[f"generated/{name}"].long()
    assert torch.equal(found, expected), (found, expected)
    if name == "greedy, end of text":
        assert expected.shape[1] < shape[1] + recipe.WRITING["max_new_tokens"]
    elif name != "greedy, as it comes":
        assert len(expected[:, shape[1] :].unique()) > 5, "a word repeated shows nothing"


@pytest.mark.parametrize("name", ["greedy", "beams"])
def test_recorded_ids_without_kept_keys(name):
    set_name, _, options = recipe.GENERATIONS[name]
    options = {**recipe.WRITING, **options, "use_cache": False}
    found = written(model_of(set_name), recipe.prompt_of(name), **options)
    assert torch.equal(found, recorded()[f"generated/{name}"].long())


def test_sampling_is_reproducible():
    model, found = model_of(), []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        found.append(written(model, ids("prompt", 2, 5), do_sample=True, max_new_tokens=20))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("initial", ["zeros", "empty"])
@pytest.mark.parametrize("same_length", [True, False])
@pytest.mark.parametrize("beams", [1, 2])
def test_texts_of_unequal_length_are_what_each_gives_alone(initial, same_length, beams):
    model = model_of(initial_memory=initial, same_length=same_length, mem_len=30)
    texts = [recipe.ids(f"text {length}", 1, length, recipe.PAD) for length in (3, 9, 6)]
    longest = max(text.shape[1] for text in texts)
    prompt = torch.zeros(len(texts), longest, dtype=torch.long)
    mask = torch.zeros_like(prompt)
    for row, text in enumerate(texts):
        prompt[row, longest - text.shape[1] :] = text
        mask[row, longest - text.shape[1] :] = 1
    together = written(model, prompt, attention_mask=mask, num_beams=beams)
    for row, text in enumerate(texts):
        alone = written(model, text, num_beams=beams)
        assert torch.equal(together[row, longest:], alone[0, text.shape[1] :]), row
    unmasked = written(model, prompt, attention_mask=torch.ones_like(prompt), num_beams=beams)
    assert not torch.equal(unmasked, together), "the mask changed nothing"


@pytest.mark.parametrize("use_cache", [None, False])
@pytest.mark.parametrize("earlier", [4, 20])
def test_memory_of_an_earlier_text_goes_on(earlier, use_cache):
    """Scores are those of steps by hand."""
    model = model_of()
    before, prompt = ids("before", 2, earlier), ids("after", 2, 3)
    with torch.no_grad():
        mems = model(before).mems
    copies = [x.clone() for x in mems]
    options = {"return_dict_in_generate": True, "output_logits": True}
    options |= {} if use_cache is None else {"use_cache": use_cache}
    found = written(model, prompt, mems=mems, **options)
    state, given = copies, prompt
    with torch.no_grad():
        for step, logits in enumerate(found.logits):
            out = model(given, mems=list(state), use_cache=False)
            state, given = out.mems, found.sequences[:, 3 + step : 4 + step]
            in_float32(logits, out.prediction_scores[:, -1])
    assert len(found.logits) == STEPS
    without = written(model, prompt, **options)
    assert not torch.allclose(found.logits[0], without.logits[0]), "the memory changed nothing"
    assert all(torch.equal(a, b) for a, b in zip(mems, copies, strict=True))


def test_memory_of_an_earlier_text_goes_on_in_every_beam():
    model, prompt = model_of(), ids("after", 2, 3)
    with torch.no_grad():
        mems = model(ids("before", 2, 9)).mems
    found = written(model, prompt, mems=mems, num_beams=3, num_return_sequences=2)
    for row in range(2):
        own = [x[:, row : row + 1].clone() for x in mems]
        options = {"num_beams": 3, "num_return_sequences": 2}
        alone = written(model, prompt[row : row + 1], mems=own, **options)
        assert torch.equal(found[2 * row : 2 * row + 2], alone)


def test_a_long_prompt_is_read_at_once():
    model, lengths = model_of(), []
    model.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(
            (args[0] if args else kwargs["input_ids"]).shape[1]
        ),
        with_kwargs=True,
    )
    written(model, ids("prompt", 2, 31))
    assert lengths == [31] + [1] * (STEPS - 1)


@pytest.mark.parametrize("use_cache", [None, False])
def test_a_step_sees_no_more_than_its_memory(use_cache, monkeypatch):
    """Keys that attention gets, by their shapes: as many in a late step as in an early one."""
    from xlnet_fast.models.transfo_xl import attention

    model, seen = model_of("mem_len 5"), []
    for name in ("rel_attention", "cached_attention"):
        real = getattr(attention, name)

        def spy(*args, real=real, name=name, **kwargs):
            keys = args[1] if len(args) > 1 else kwargs["k"]
            count = keys.shape[1]
            if name == "rel_attention" and kwargs.get("k_memory") is not None:
                count += kwargs["k_memory"].shape[1]
            if name == "cached_attention":
                count = keys.shape[2]
            seen.append((args[0].shape, count))
            return real(*args, **kwargs)

        monkeypatch.setattr(attention, name, spy)
    options = {} if use_cache is None else {"use_cache": use_cache}
    written(model, ids("prompt", 1, 4), max_new_tokens=40, **options)
    steps = [count for _, count in seen]
    layers = model.config.n_layer
    assert len(steps) == 40 * layers
    assert max(steps[layers:]) <= model.config.mem_len + 1
    assert len(set(steps[3 * layers :])) == 1


def test_kept_keys_are_used_in_generation(monkeypatch):
    """Else the test above of both ways shows one of them twice."""
    from xlnet_fast.models.transfo_xl import attention

    calls = []
    real = attention.cached_attention
    monkeypatch.setattr(
        attention, "cached_attention", lambda *a, **k: calls.append(1) or real(*a, **k)
    )
    model = model_of()
    written(model, ids("prompt", 2, 5))
    assert len(calls) == (STEPS - 1) * model.config.n_layer
    calls.clear()
    written(model, ids("prompt", 2, 5), use_cache=False)
    assert not calls


def test_scores_of_every_step_are_those_of_one_call():
    """Where the memory holds the whole text, steps are a segment's tokens."""
    model = model_of("mem_len 40")
    prompt = ids("prompt", 2, 5)
    out = written(
        model, prompt, no_repeat_ngram_size=0, return_dict_in_generate=True, output_scores=True
    )
    with torch.no_grad():
        whole = model(out.sequences[:, :-1]).prediction_scores[:, 4:]
    in_float32(torch.stack(out.scores, 1), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("beams", [1, 3])
def test_halves(dtype, beams):
    model, prompt = model_of(dtype=dtype), ids("prompt", 2, 5)
    out = written(model, prompt, num_beams=beams, return_dict_in_generate=True, output_logits=True)
    assert all(x.isfinite().all() for x in out.logits)
    assert torch.equal(out.sequences, written(model, prompt, num_beams=beams))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x: x[:, :0], r"input_ids has shape \(2, 0\), expected \(B, I\) with B and I >= 1"),
        (lambda x: x[:0], r"shape \(0, 5\), expected"),
        (lambda x: x[0], r"shape \(5,\), expected"),
    ],
)
@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_prompt_of_nothing_is_told(make, words, num_beams):
    model, prompt = model_of(), ids("prompt", 2, 5)
    with pytest.raises(ShapeError, match=words):
        written(model, make(prompt), num_beams=num_beams)


@pytest.mark.parametrize("mems", [[], [None, None], 3])
def test_what_is_no_memory_is_told(mems):
    with pytest.raises(ArgumentError, match=r"mems (has 0 tensors|is list|is int), expected"):
        written(model_of(), ids("prompt", 2, 5), mems=mems, num_beams=2)
