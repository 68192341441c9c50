"""Config options and every combination of forward arguments, in float64, with every gradient.

That an option acts alike under all arguments is so by construction: it makes the position table
(``test_nn_rel_attention.py`` has all of them) or the mask.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from cpu_kernels import FUSED_ON_CPU
from hf_parity import (
    F64,
    accelerated,
    assert_tight,
    compare,
    hf_in,
    in_dtype,
    one_hot_targets,
    padding,
    random_ids,
    random_mems,
    run,
    tiny_model,
)
from hypothesis import given
from hypothesis import strategies as st

BATCH, LENGTH, MEMORY = 2, 6, 3

PERM_MASK = (
    torch.rand(BATCH, LENGTH, LENGTH, generator=torch.Generator().manual_seed(4)) < 0.5
).float()
PERM_MASK[:, 0] = 1  # a token that sees no other: uniform in the query stream
MASKS = {
    "none": {},
    "left": {"attention_mask": padding(BATCH, LENGTH, "left")},
    "perm": {"perm_mask": PERM_MASK},
    "perm+right": {"perm_mask": PERM_MASK, "input_mask": 1 - padding(BATCH, LENGTH, "right")},
}

TARGETS = {
    "none": None,
    "one-hot": one_hot_targets([[4, 0, -1], [2, 5, 0]], LENGTH),
    "dense": torch.randn(BATCH, 3, LENGTH, generator=torch.Generator().manual_seed(5)),
}


@pytest.mark.parametrize(
    ("attn_type", "same_length", "bi_data", "clamp_len"),
    [
        ("bi", False, False, -1),
        ("bi", False, True, 2),
        ("uni", False, True, -1),
        ("uni", True, False, 2),
    ],
)
def test_all_arguments_agree_with_hugging_face(attn_type, same_length, bi_data, clamp_len):
    model = tiny_model(
        dtype=F64,
        attn_type=attn_type,
        same_length=same_length,
        bi_data=bi_data,
        clamp_len=clamp_len,
        mem_len=5,
    )
    oracle = hf_in(model, F64)
    ours = accelerated(model)
    masks = ["none"] if attn_type == "uni" else list(MASKS)  # uni: HF raises, see test_hf_masks
    arguments = itertools.product(masks, TARGETS, (0, MEMORY), (False, True), (False, True))
    for mask, targets, memory, segments, attentions in arguments:
        inputs = {
            "input_ids": random_ids(BATCH, LENGTH),
            "use_mems": True,
            "output_hidden_states": True,
            "output_attentions": attentions,
            "target_mapping": TARGETS[targets],
            "token_type_ids": random_ids(BATCH, LENGTH, 1) % 3 if segments else None,
            "mems": random_mems(BATCH, memory) if memory else None,
            **MASKS[mask],
        }
        inputs = in_dtype(inputs, F64)
        note = f"mask {mask}, targets {targets}, M {memory}, {segments=}, {attentions=}:"
        expected = run(oracle, inputs)
        assert_tight(run(ours, inputs), expected, note)


@pytest.mark.parametrize("attn_type", ["bi", "uni"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("backend", FUSED_ON_CPU)
def test_options_in_working_precisions(attn_type, dtype, backend):
    options = {"same_length": True, "bi_data": True, "clamp_len": 3}
    model = tiny_model(dtype=dtype, attn_type=attn_type, **options)
    inputs = [
        {
            "input_ids": random_ids(BATCH, LENGTH, seed),
            "token_type_ids": random_ids(BATCH, LENGTH, seed + 1) % 3,
            "mems": random_mems(BATCH, MEMORY, seed),
        }
        for seed in range(8)
    ]
    compare(model, inputs, dtype, backend=backend)


@st.composite
def problems(draw):
    """Config options, sizes and arguments of one forward pass that HF accepts."""
    attn_type = draw(st.sampled_from(["bi", "uni"]))
    config = {
        "attn_type": attn_type,
        "same_length": draw(st.booleans()),
        "bi_data": draw(st.booleans()),
        "clamp_len": draw(st.sampled_from([-1, 1, 4])),
        "mem_len": draw(st.sampled_from([None, 1, 4])),
        "reuse_len": draw(st.sampled_from([None, 2])),
    }
    batch = draw(st.integers(1, 3)) * (2 if config["bi_data"] else 1)
    length, memory = draw(st.integers(1, 17)), draw(st.sampled_from([0, 1, 5]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    inputs = {
        "input_ids": torch.randint(0, 50, (batch, length), generator=generator),
        "use_mems": draw(st.booleans()),
        "output_attentions": draw(st.booleans()),
    }
    if memory:
        inputs["mems"] = random_mems(batch, memory)
    if draw(st.booleans()):
        inputs["token_type_ids"] = torch.randint(0, 4, (batch, length), generator=generator)
    data_masks = attn_type == "bi" or batch == 1  # uni with a data mask at batch >= 2: HF raises
    if data_masks and draw(st.booleans()):
        inputs["attention_mask"] = (torch.rand(batch, length, generator=generator) < 0.7).double()
    if data_masks and draw(st.booleans()):
        shape = (batch, length, length)
        inputs["perm_mask"] = (torch.rand(shape, generator=generator) < 0.5).double()
    kind = draw(st.sampled_from(["none", "permutation", "any rows", "dense"]))
    count = draw(st.integers(1, length))
    if kind == "permutation":
        order = torch.stack([torch.randperm(length, generator=generator) for _ in range(batch)])
        inputs["target_mapping"] = torch.eye(length)[order[:, :count]]
    elif kind == "any rows":  # with repeats and zero rows
        rows = torch.randint(0, length + 1, (batch, count), generator=generator)
        inputs["target_mapping"] = torch.eye(length + 1)[rows][:, :, :length]
    elif kind == "dense":
        inputs["target_mapping"] = torch.randn(batch, count, length, generator=generator)
    return config, in_dtype(inputs, F64)


@given(problems(), st.sampled_from(["sdpa", "reference"]))
def test_random_problems_agree_with_hugging_face(problem, backend):
    config, inputs = problem
    model = tiny_model(dtype=F64, **config)
    ours = accelerated(model, backend=backend)
    assert_tight(run(ours, inputs), run(hf_in(model, F64), inputs), str(config))
