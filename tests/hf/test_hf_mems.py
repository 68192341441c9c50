"""Memory over several segments: mem_len, reuse_len, clamp_len, and what HF returns as mems."""

from __future__ import annotations

import pytest
import torch
from hf_parity import (
    F64,
    LAYERS,
    accelerated,
    assert_tight,
    hf_in,
    one_hot_targets,
    random_ids,
    random_mems,
    run,
    tiny_model,
)
from hypothesis import given
from hypothesis import strategies as st
from transformers import XLNetLMHeadModel

BATCH, LENGTH = 2, 5


def assert_segments_agree(segments=4, length=LENGTH, targets=False, training=False, **config):
    """Feed a text segment by segment, each model with its own memory."""
    model = tiny_model(XLNetLMHeadModel, F64, **config).train(training)
    models = {"hf": hf_in(model, F64), "ours": accelerated(model)}
    memory = dict.fromkeys(models)
    for number in range(segments):
        inputs = {"input_ids": random_ids(BATCH, length, number), "output_hidden_states": True}
        if targets:
            inputs["perm_mask"] = torch.ones(length, length, dtype=F64).triu().repeat(BATCH, 1, 1)
            rows = [[length - 1, 0], [-1, length // 2]]
            inputs["target_mapping"] = one_hot_targets(rows, length).double()
        results = {}
        for name, candidate in models.items():
            results[name] = run(candidate, inputs | {"mems": memory[name]})
            memory[name] = candidate(**inputs, mems=memory[name]).mems
        assert_tight(results["ours"], results["hf"], f"segment {number}")
        returned = memory["ours"]
        assert (returned is None) == (memory["hf"] is None)
        if returned is not None:
            assert isinstance(returned, tuple)
            assert len(returned) == LAYERS
            assert all(not layer.requires_grad for layer in returned)


@pytest.mark.parametrize("targets", [False, True], ids=["one stream", "two streams"])
@pytest.mark.parametrize("reuse_len", [None, 0, 2, 9])
@pytest.mark.parametrize("mem_len", [None, 0, 1, 7])
def test_segments(mem_len, reuse_len, targets):
    assert_segments_agree(mem_len=mem_len, reuse_len=reuse_len, targets=targets)


@pytest.mark.parametrize("same_length", [False, True])
@pytest.mark.parametrize("clamp_len", [-1, 3])
@pytest.mark.parametrize("bi_data", [False, True])
def test_segments_of_a_causal_model(same_length, clamp_len, bi_data):
    assert_segments_agree(
        attn_type="uni",
        same_length=same_length,
        clamp_len=clamp_len,
        bi_data=bi_data,
        mem_len=7,
    )


@pytest.mark.parametrize("use_mems_train", [False, True])
def test_segments_in_training(use_mems_train):
    assert_segments_agree(training=True, mem_len=6, use_mems_train=use_mems_train)


@given(
    st.integers(1, 9), st.sampled_from([None, 1, 4, 20]), st.sampled_from([None, 1, 4, 20]),
    st.integers(1, 3),
)  # fmt: skip
def test_any_lengths(length, mem_len, reuse_len, segments):
    assert_segments_agree(segments, length, mem_len=mem_len, reuse_len=reuse_len)


@pytest.mark.parametrize("use_mems", [None, False, True])
@pytest.mark.parametrize("use_mems_eval", [False, True])
def test_use_mems_argument_and_config(use_mems, use_mems_eval):
    model = tiny_model(dtype=F64, use_mems_eval=use_mems_eval)
    inputs = {"input_ids": random_ids(BATCH, LENGTH), "use_mems": use_mems}
    inputs["mems"] = [memory.double() for memory in random_mems(BATCH, 2)]
    assert_tight(run(accelerated(model), inputs), run(hf_in(model, F64), inputs))


@pytest.mark.parametrize("mems", [None, [None] * LAYERS, []])
def test_absent_memory(mems):
    ours = accelerated(tiny_model(dtype=F64))
    ids = random_ids(BATCH, LENGTH)
    assert torch.equal(ours(ids, mems=mems)[0], ours(ids)[0])


def test_memory_of_no_tokens():
    model = tiny_model(dtype=F64)
    inputs = {"input_ids": random_ids(BATCH, LENGTH)}
    inputs["mems"] = [memory.double() for memory in random_mems(BATCH, 0)]
    assert_tight(run(accelerated(model), inputs), run(hf_in(model, F64), inputs))


def test_returned_memory_does_not_keep_the_longer_tensor_alive():
    """HF's slice of [memory; hidden] is a view that holds all of it."""
    ours = accelerated(tiny_model(mem_len=2))
    for memory in ours(random_ids(BATCH, 9)).mems:
        assert memory.shape[0] == 2
        assert memory.untyped_storage().nbytes() == memory.numel() * memory.element_size()


def test_memory_is_not_changed_by_what_follows():
    """The hidden states that became memory may be changed in place by a caller."""
    ours = accelerated(tiny_model(mem_len=None))
    output = ours(random_ids(BATCH, LENGTH), output_hidden_states=True)
    before = [memory.clone() for memory in output.mems]
    for state in output.hidden_states:
        state.detach().zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, output.mems, strict=True))


def test_memory_in_another_precision_is_converted():
    ours = accelerated(tiny_model(dtype=torch.bfloat16))
    ids, mems = random_ids(BATCH, LENGTH), random_mems(BATCH, 3)
    rounded = [memory.bfloat16() for memory in mems]
    assert torch.equal(ours(ids, mems=mems)[0], ours(ids, mems=rounded)[0])
