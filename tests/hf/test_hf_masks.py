"""Padding on either side, in every form, with either attention type, and NaN where nobody looks."""

from __future__ import annotations

import pytest
import torch
from cpu_kernels import FUSED_ON_CPU, ON_CPU
from hf_parity import (
    F64,
    WIDTH,
    accelerated,
    assert_tight,
    compare,
    hf_in,
    one_hot_targets,
    padding,
    random_ids,
    random_mems,
    run,
    tiny_model,
)
from transformers import XLNetForSequenceClassification

BATCH, LENGTH = 3, 7
SIDES = ["left", "right"]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("memory", [0, 2])
def test_padding(side, memory):
    model = tiny_model(dtype=F64)
    inputs = {"input_ids": random_ids(BATCH, LENGTH), "attention_mask": padding(3, LENGTH, side)}
    if memory:
        inputs["mems"] = [m.double() for m in random_mems(BATCH, memory)]
    assert_tight(run(accelerated(model), inputs), run(hf_in(model, F64), inputs))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("backend", FUSED_ON_CPU)
def test_padding_in_working_precisions(side, dtype, backend):
    mask = padding(BATCH, LENGTH, side)
    inputs = [{"input_ids": random_ids(BATCH, LENGTH, n), "attention_mask": mask} for n in range(8)]
    compare(tiny_model(XLNetForSequenceClassification, dtype), inputs, dtype, backend=backend)


@pytest.mark.parametrize("side", SIDES)
def test_padding_changes_nothing_for_real_tokens(side):
    """A padded text gives what the same text gives alone, if real tokens are adjacent."""
    ours = accelerated(tiny_model(dtype=F64))
    mask = padding(BATCH, LENGTH, side)
    ids = random_ids(BATCH, LENGTH)
    together = ours(ids, attention_mask=mask).last_hidden_state
    for b in range(BATCH):
        real = mask[b].bool()
        alone = ours(ids[b : b + 1, real]).last_hidden_state
        torch.testing.assert_close(together[b : b + 1, real], alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize("side", SIDES)
def test_every_form_of_the_same_mask(side):
    ours = accelerated(tiny_model(dtype=F64))
    ids, mask = random_ids(BATCH, LENGTH), padding(BATCH, LENGTH, side)
    expected = ours(ids, attention_mask=mask)[0]
    for form in (mask.bool(), mask.long(), mask.to(torch.uint8), mask.half(), mask.double()):
        assert torch.equal(ours(ids, attention_mask=form)[0], expected), form.dtype
    for form in (1 - mask, mask == 0, (mask == 0).long()):
        assert torch.equal(ours(ids, input_mask=form)[0], expected), form.dtype


def test_fractions_in_the_mask_mean_what_they_mean_to_hugging_face():
    model = tiny_model(dtype=F64)
    mask = torch.tensor([[1, 0.5, 1, 2, 1, 0, 1.0]]).repeat(BATCH, 1).double()
    inputs = {"input_ids": random_ids(BATCH, LENGTH), "attention_mask": mask}
    assert_tight(run(accelerated(model), inputs), run(hf_in(model, F64), inputs))


def test_text_that_is_all_padding_is_finite_and_as_hugging_face():
    model = tiny_model(dtype=F64)
    mask = torch.ones(BATCH, LENGTH)
    mask[1] = 0
    inputs = {"input_ids": random_ids(BATCH, LENGTH), "attention_mask": mask.double()}
    inputs["target_mapping"] = one_hot_targets([[0, 3]] * BATCH, LENGTH).double()
    inputs["perm_mask"] = torch.ones(BATCH, LENGTH, LENGTH, dtype=F64)
    assert_tight(run(accelerated(model), inputs), run(hf_in(model, F64), inputs))


@pytest.mark.parametrize("mask_name", ["attention_mask", "input_mask", "perm_mask"])
@pytest.mark.parametrize("memory", [0, 2])
@pytest.mark.parametrize("same_length", [False, True])
@pytest.mark.parametrize("targets", [False, True])
def test_causal_model_with_a_data_mask(mask_name, memory, same_length, targets):
    """HF raises at batch >= 2 (it adds a batch of masks to one mask in place); each batch element
    alone, where HF works, says what is right.
    """
    model = tiny_model(dtype=F64, attn_type="uni", same_length=same_length)
    mask = padding(BATCH, LENGTH, "left").double()
    masks = {
        "attention_mask": mask,
        "input_mask": 1 - mask,
        "perm_mask": (torch.rand(BATCH, LENGTH, LENGTH) < 0.5).double().triu(1),
    }
    inputs = {"input_ids": random_ids(BATCH, LENGTH), mask_name: masks[mask_name]}
    if targets:
        inputs["target_mapping"] = one_hot_targets([[1, 4], [6, -1], [3, 5]], LENGTH).double()
    mems = [m.double() for m in random_mems(BATCH, memory)] if memory else None
    oracle, ours = hf_in(model, F64), accelerated(model)
    with pytest.raises(RuntimeError, match="output with shape"):
        oracle(**inputs, mems=mems)
    together = run(ours, inputs | {"mems": mems, "use_mems": False})
    grads = {}
    for b in range(BATCH):
        one = {name: x[b : b + 1] for name, x in inputs.items()}
        one["mems"] = None if mems is None else [m[:, b : b + 1] for m in mems]
        alone = oracle(**one, use_mems=False)[0]
        name = "last_hidden_state"
        assert_tight({name: together[name][b : b + 1]}, {name: alone.detach()}, f"b {b}")
        signs = torch.randint(
            0, 2, together[name].shape, generator=torch.Generator().manual_seed(2)
        )
        (alone * (signs[b : b + 1] * 2 - 1)).sum().backward()
    grads = {f"d {name}": p.grad for name, p in oracle.named_parameters()}
    assert_tight({name: together[name] for name in grads}, grads)


def test_causal_row_that_sees_nothing():
    """Output as HF's: the mean of all values. The gradient of its scores is not HF's, which reads
    the position scores of hidden keys from the next row of its table; ours takes them as zero.
    """
    model = tiny_model(dtype=F64, attn_type="uni")
    inputs = {"input_ids": random_ids(1, LENGTH), "attention_mask": torch.ones(1, LENGTH).double()}
    inputs["attention_mask"][0, :2] = 0
    inputs["target_mapping"] = one_hot_targets([[0, 1]], LENGTH).double()
    forward = [run(x, inputs, backward=False) for x in (accelerated(model), hf_in(model, F64))]
    assert_tight(*forward)
    assert_tight(
        run(accelerated(model, backend="sdpa"), inputs),
        run(accelerated(model, backend="reference"), inputs),
    )


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("attentions", [False, True])
def test_nan_in_padding_stays_there(side, backend, attentions):
    ours = accelerated(tiny_model(), backend=backend)
    mask = padding(BATCH, LENGTH, side)
    clean = torch.randn(BATCH, LENGTH, WIDTH)
    dirty = clean.masked_fill(mask[..., None] == 0, float("nan"))
    expected, actual = (
        ours(inputs_embeds=x, attention_mask=mask, output_attentions=attentions)
        for x in (clean, dirty)
    )
    real = mask.bool()
    assert torch.equal(actual[0][real], expected[0][real])
    assert actual[0][real].isfinite().all()
    if attentions:
        for layer in actual.attentions:
            rows = layer.transpose(1, 2)[real]  # (real tokens, N, J)
            assert rows.isfinite().all()


@pytest.mark.parametrize("backend", FUSED_ON_CPU)
def test_infinity_in_padding_stays_there_with_two_streams(backend):
    ours = accelerated(tiny_model(), backend=backend)
    mask = padding(BATCH, LENGTH, "right")
    clean = torch.randn(BATCH, LENGTH, WIDTH)
    dirty = clean.masked_fill(mask[..., None] == 0, float("inf"))
    perm_mask = torch.ones(LENGTH, LENGTH).triu().repeat(BATCH, 1, 1)
    targets = one_hot_targets([[3, 1], [0, 2], [3, 1]], LENGTH)
    expected, actual = (
        ours(inputs_embeds=x, attention_mask=mask, perm_mask=perm_mask, target_mapping=targets)[0]
        for x in (clean, dirty)
    )
    # The first token of a permutation sees nothing: uniform over all keys, padding included.
    sees_something = torch.tensor([[True, True], [False, True], [True, True]])
    assert torch.equal(actual[sees_something], expected[sees_something])
    assert actual[sees_something].isfinite().all()


@pytest.mark.parametrize("backend", ON_CPU)
def test_arguments_that_change_before_the_backward_pass(backend):
    """Hugging Face has made its own of them by then; so have we."""
    model = accelerated(tiny_model(), backend=backend)
    gradients = []
    for change in (False, True):
        ids = random_ids(BATCH, LENGTH)
        given = {"attention_mask": padding(3, LENGTH, "left"), "token_type_ids": (ids > 3).long()}
        assert given["token_type_ids"].any()
        hidden = model(ids, **given).last_hidden_state
        for value in given.values() if change else ():
            value.zero_()
        hidden.square().sum().backward()
        gradients.append({n: x.grad for n, x in model.named_parameters() if x.grad is not None})
        model.zero_grad()
    for name, expected in gradients[0].items():
        assert torch.equal(gradients[1][name], expected), name
