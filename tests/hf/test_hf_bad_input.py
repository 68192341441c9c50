"""Bad input: one clear error that names the argument, or the right result; never a wild read."""

from __future__ import annotations

import pytest
import torch
from hf_parity import (
    LAYERS,
    VOCABULARY,
    WIDTH,
    accelerated,
    assert_tight,
    hf_in,
    padding,
    random_ids,
    random_mems,
    run,
    tiny_model,
)
from transformers import XLNetForSequenceClassification

from xlnet_fast import ArgumentError, ShapeError

BATCH, LENGTH = 2, 5
IDS = random_ids(BATCH, LENGTH)


@pytest.fixture(scope="module")
def ours():
    return accelerated(tiny_model())


def mems(**changes):
    values = dict(enumerate(random_mems(BATCH, 3)))
    return list((values | {int(name[1:]): value for name, value in changes.items()}).values())


SHAPES = {
    "ids of rank 1": ({"input_ids": IDS[0]}, r"input_ids has shape \(5,\), expected \(B, I\)"),
    "ids of rank 3": ({"input_ids": IDS[None]}, r"input_ids has shape \(1, 2, 5\)"),
    "no tokens": ({"input_ids": IDS[:, :0]}, "length 0, expected at least one token"),
    "embeds of rank 2": (
        {"input_ids": None, "inputs_embeds": torch.ones(LENGTH, WIDTH)},
        rf"inputs_embeds has shape \(5, 16\), expected \(B, I, H\) with H = {WIDTH}",
    ),
    "embeds of another width": (
        {"input_ids": None, "inputs_embeds": torch.ones(BATCH, LENGTH, 3)},
        r"inputs_embeds has shape \(2, 5, 3\)",
    ),
    "mask of another length": (
        {"attention_mask": torch.ones(BATCH, LENGTH + 1)},
        r"attention_mask has shape \(2, 6\), expected \(2, 5\)",
    ),
    "mask of another batch": (
        {"attention_mask": torch.ones(BATCH + 1, LENGTH)}, r"attention_mask has shape \(3, 5\)"
    ),
    "mask of rank 4": (
        {"attention_mask": torch.ones(BATCH, 1, LENGTH, LENGTH)}, "attention_mask has shape"
    ),
    "input_mask": ({"input_mask": torch.ones(LENGTH)}, r"input_mask has shape \(5,\)"),
    "perm_mask of rank 2": (
        {"perm_mask": torch.ones(LENGTH, LENGTH)},
        r"perm_mask has shape \(5, 5\), expected \(2, 5, 5\)",
    ),
    "perm_mask with memory": (
        {"perm_mask": torch.ones(BATCH, LENGTH, LENGTH + 3), "mems": mems()},
        r"perm_mask has shape \(2, 5, 8\)",
    ),
    "target_mapping of rank 2": (
        {"target_mapping": torch.ones(BATCH, LENGTH)}, r"target_mapping has shape \(2, 5\)"
    ),
    "target_mapping of another length": (
        {"target_mapping": torch.ones(BATCH, 3, LENGTH + 1)},
        r"target_mapping has shape \(2, 3, 6\), expected \(2, 3, 5\)",
    ),
    "target_positions": (
        {"target_positions": torch.zeros(LENGTH, dtype=torch.long)},
        r"target_positions has shape \(5,\)",
    ),
    "token types": (
        {"token_type_ids": IDS[:, 1:]}, r"token_type_ids has shape \(2, 4\), expected \(2, 5\)"
    ),
    "ranks": ({"permutation_ranks": (IDS, IDS[:, 1:])}, r"permutation_ranks\[1\] has shape"),
    "too few mems": ({"mems": mems()[:1]}, f"mems has 1 entries, expected one per layer: {LAYERS}"),
    "mems of another batch": (
        {"mems": random_mems(BATCH + 1, 3)},
        r"mems\[0\] has shape \(3, 3, 16\), expected \(3, 2, 16\)",
    ),
    "mems whose lengths differ": (
        {"mems": mems(_1=torch.ones(4, BATCH, WIDTH))},
        r"mems\[1\] has shape \(4, 2, 16\), expected \(3, 2, 16\).*one M for all layers",
    ),
    "mems of another width": ({"mems": [torch.ones(3, BATCH, 4)] * 2}, r"mems\[0\] has shape"),
    "mems of rank 0": ({"mems": [torch.tensor(1.0)] * 2}, r"mems\[0\] has shape \(\)"),
    "mems of rank 2": ({"mems": [torch.ones(3, WIDTH)] * 2}, r"mems\[0\] has shape \(3, 16\)"),
}  # fmt: skip
ARGUMENTS = {
    "no input": ({"input_ids": None}, "give input_ids or inputs_embeds"),
    "two inputs": (
        {"inputs_embeds": torch.ones(BATCH, LENGTH, WIDTH)}, "one of input_ids and inputs_embeds"
    ),
    "two paddings": (
        {"attention_mask": torch.ones(BATCH, LENGTH), "input_mask": torch.ones(BATCH, LENGTH)},
        "one of attention_mask .* and input_mask",
    ),
    "two permutations": (
        {"perm_mask": torch.ones(BATCH, LENGTH, LENGTH), "permutation_ranks": (IDS, IDS)},
        "one of perm_mask and permutation_ranks",
    ),
    "two targets": (
        {"target_mapping": torch.ones(BATCH, 1, LENGTH), "target_positions": IDS[:, :1]},
        "one of target_mapping and target_positions",
    ),
    "float ids": ({"input_ids": IDS.float()}, "input_ids has dtype torch.float32, expected int32"),
    "bool ids": ({"input_ids": IDS > 3}, "input_ids has dtype torch.bool"),
    "integer embeds": (
        {"input_ids": None, "inputs_embeds": torch.ones(BATCH, LENGTH, WIDTH).long()},
        "inputs_embeds has dtype torch.int64, expected that of the model: torch.float32",
    ),
    "float64 embeds": (
        {"input_ids": None, "inputs_embeds": torch.ones(BATCH, LENGTH, WIDTH).double()},
        "inputs_embeds has dtype torch.float64",
    ),
    "float token types": (
        {"token_type_ids": torch.ones(BATCH, LENGTH)}, "token_type_ids has dtype torch.float32"
    ),
    "float target_positions": (
        {"target_positions": torch.ones(BATCH, 2)}, "target_positions has dtype torch.float32"
    ),
    "float ranks": (
        {"permutation_ranks": (IDS.float(), IDS)}, r"permutation_ranks\[0\] has dtype torch.float32"
    ),
    "one rank": ({"permutation_ranks": (IDS,)}, "permutation_ranks must be a pair"),
    "ranks in one tensor": ({"permutation_ranks": IDS}, "permutation_ranks must be a pair"),
    "integer mems": (
        {"mems": mems(_0=torch.ones(3, BATCH, WIDTH).long())}, r"mems\[0\] has dtype torch.int64"
    ),
    "a hole in mems": ({"mems": mems(_1=None)}, r"mems\[1\] must be a tensor .* got NoneType"),
    "mems that are no tensors": ({"mems": ["a", "b"]}, r"mems\[0\] must be a tensor"),
    "a list for a mask": ({"attention_mask": [[1] * LENGTH] * BATCH}, "attention_mask must be a"),
    "position too large": (
        {"target_positions": torch.tensor([[0, LENGTH], [1, 2]])},
        f"target_positions reach {LENGTH}, expected at most {LENGTH - 1}",
    ),
    "position huge": ({"target_positions": torch.tensor([[2**40], [1]])}, "target_positions reach"),
    "position twice": (
        {"target_positions": torch.tensor([[0, 1], [2, 2]])}, "target_positions name a position"
    ),
}  # fmt: skip


@pytest.mark.parametrize("attentions", [False, True])
@pytest.mark.parametrize("case", SHAPES)
def test_wrong_shapes(ours, case, attentions):
    arguments, message = SHAPES[case]
    with pytest.raises(ShapeError, match=message):
        ours(**({"input_ids": IDS} | arguments), output_attentions=attentions)


@pytest.mark.parametrize("attentions", [False, True])
@pytest.mark.parametrize("case", ARGUMENTS)
def test_wrong_arguments(ours, case, attentions):
    arguments, message = ARGUMENTS[case]
    with pytest.raises(ArgumentError, match=message):
        ours(**({"input_ids": IDS} | arguments), output_attentions=attentions)


ELSEWHERE = {
    "input_ids": IDS,
    "attention_mask": torch.ones(BATCH, LENGTH),
    "input_mask": torch.ones(BATCH, LENGTH),
    "perm_mask": torch.ones(BATCH, LENGTH, LENGTH),
    "target_mapping": torch.ones(BATCH, 2, LENGTH),
    "target_positions": IDS[:, :1],
    "token_type_ids": IDS,
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_wrong_devices(ours, name):
    arguments = {"input_ids": IDS, name: ELSEWHERE[name].to("meta")}
    with pytest.raises(ArgumentError, match=f"{name} is on meta, expected the model's device: cpu"):
        ours(**arguments)


def test_wrong_device_inside_mems_and_ranks(ours):
    with pytest.raises(ArgumentError, match=r"mems\[1\] is on meta"):
        ours(IDS, mems=mems(_1=torch.ones(3, BATCH, WIDTH, device="meta")))
    with pytest.raises(ArgumentError, match=r"permutation_ranks\[1\] is on meta"):
        ours(IDS, permutation_ranks=(IDS, IDS.to("meta")))


@pytest.mark.parametrize("bad", [-1, VOCABULARY, 2**40])
def test_ids_outside_the_vocabulary(ours, bad):
    ids = IDS.clone()
    ids[1, 2] = bad
    with pytest.raises(IndexError, match=f"input_ids go from .* expected 0 to {VOCABULARY - 1}"):
        ours(ids)


def test_an_index_error_of_a_hook_stays_what_it_is(ours):
    def hook(*_):
        raise IndexError("of the hook")

    handle = ours.word_embedding.register_forward_hook(hook)
    try:
        with pytest.raises(IndexError, match=r"^of the hook$"):
            ours(IDS)
    finally:
        handle.remove()


def test_embeds_of_another_dtype_are_welcome_under_autocast(ours):
    embeds = torch.randn(BATCH, LENGTH, WIDTH).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(inputs_embeds=embeds)[0].isfinite().all()
    with pytest.raises(ArgumentError, match=r"inputs_embeds has dtype torch\.bfloat16"):
        ours(inputs_embeds=embeds)


def test_unknown_attention_type():
    model = accelerated(tiny_model())
    model.attn_type = "sideways"
    with pytest.raises(ArgumentError, match="attn_type is 'sideways', expected 'bi' or 'uni'"):
        model(IDS)


@pytest.mark.parametrize("batch", [1, 2])
def test_one_token(batch):
    model = tiny_model(dtype=torch.float64)
    for extra in ({}, {"mems": [m.double() for m in random_mems(batch, 2)]},
                  {"target_mapping": torch.ones(batch, 1, 1, dtype=torch.float64)}):  # fmt: skip
        inputs = {"input_ids": random_ids(batch, 1), **extra}
        assert_tight(run(accelerated(model), inputs), run(hf_in(model, torch.float64), inputs))


@pytest.mark.parametrize("attn_type", ["bi", "uni"])
@pytest.mark.parametrize("attentions", [False, True])
@pytest.mark.parametrize("targets", [False, True])
def test_empty_batch(attn_type, attentions, targets):
    model = tiny_model(attn_type=attn_type)
    inputs = {"input_ids": random_ids(0, LENGTH), "output_attentions": attentions}
    inputs["attention_mask"] = torch.ones(0, LENGTH)
    if targets:
        inputs["target_mapping"] = torch.ones(0, 2, LENGTH)
    output = accelerated(model)(**inputs)
    assert output.last_hidden_state.shape == (0, 2 if targets else LENGTH, WIDTH)
    output.last_hidden_state.sum().backward()
    assert all(memory.shape == (LENGTH, 0, WIDTH) for memory in output.mems)


def test_no_predictions():
    """I' = 0: an empty prediction, and the content stream as ever."""
    model = accelerated(tiny_model())
    expected = model(IDS, output_hidden_states=True).hidden_states[-1]
    inputs = {"target_mapping": torch.ones(BATCH, 0, LENGTH), "output_hidden_states": True}
    output = model(IDS, **inputs)
    assert output[0].shape == (BATCH, 0, WIDTH)
    assert torch.equal(output.hidden_states[-2], expected)


def test_a_hook_that_changes_the_batch_of_the_embedding(ours):
    """Attribution tools feed many scaled embeddings of one input this way."""
    hook = ours.word_embedding.register_forward_hook(lambda module, ids, out: out.repeat(3, 1, 1))
    try:
        with pytest.raises(ShapeError, match=r"returned \(15, 2, 16\) .* Give inputs_embeds"):
            ours(IDS)
    finally:
        hook.remove()


def test_nan_in_padding_reaches_no_logit():
    model = accelerated(tiny_model(XLNetForSequenceClassification))
    mask = padding(BATCH, LENGTH, "left")
    embeds = torch.randn(BATCH, LENGTH, WIDTH).masked_fill(mask[..., None] == 0, float("nan"))
    logits = model(inputs_embeds=embeds, attention_mask=mask).logits
    assert logits.isfinite().all()
