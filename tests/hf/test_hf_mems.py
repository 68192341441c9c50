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

from xlnet_fast.hf.families.xlnet import modules

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


@pytest.mark.parametrize("reuse_len", [None, 0, 2, 9])
@pytest.mark.parametrize("mem_len", [None, 0, 1, 7])
def test_segments(mem_len, reuse_len):
    assert_segments_agree(mem_len=mem_len, reuse_len=reuse_len)


def test_segments_of_two_streams():
    assert_segments_agree(mem_len=7, reuse_len=2, targets=True)


@pytest.mark.parametrize(
    ("same_length", "clamp_len", "bi_data"), [(False, -1, True), (True, -1, False), (True, 3, True)]
)
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


@pytest.mark.parametrize("mems", [None, [None] * LAYERS, [], [torch.empty(0)] * LAYERS])
def test_absent_memory(mems):
    ours = accelerated(tiny_model(dtype=F64))
    ids = random_ids(BATCH, LENGTH)
    assert torch.equal(ours(ids, mems=mems)[0], ours(ids)[0])


def test_memory_made_under_inference_mode_is_trained_on():
    model = tiny_model(dtype=F64)
    ours = accelerated(model)
    inputs = {"input_ids": random_ids(BATCH, LENGTH)}
    with torch.inference_mode():
        first = ours(**inputs).mems
        again = ours(**inputs, mems=first).mems
    assert all(memory.is_inference() for memory in again)
    trained = run(ours, inputs | {"mems": again})
    assert_tight(trained, run(hf_in(model, F64), inputs | {"mems": [m.clone() for m in again]}))


def test_memory_of_no_tokens():
    model = tiny_model(dtype=F64)
    inputs = {"input_ids": random_ids(BATCH, LENGTH)}
    inputs["mems"] = [memory.double() for memory in random_mems(BATCH, 0)]
    assert_tight(run(accelerated(model), inputs), run(hf_in(model, F64), inputs))


def test_returned_memory_does_not_keep_the_longer_tensor_alive():
    """HF's slice of [memory; hidden] is a view that holds all of it.

    The layers of ours share one tensor, which holds their memory and nothing else.
    """
    ours = accelerated(tiny_model(mem_len=2))
    mems = ours(random_ids(BATCH, 9)).mems
    for memory in mems:
        assert memory.shape[0] == 2
        storage = memory.untyped_storage()
        assert storage.nbytes() == LAYERS * memory.numel() * memory.element_size()
        assert storage.data_ptr() == mems[0].untyped_storage().data_ptr()


def test_memory_is_not_changed_by_what_follows():
    """The hidden states that became memory may be changed in place by a caller."""
    ours = accelerated(tiny_model(mem_len=None))
    output = ours(random_ids(BATCH, LENGTH), output_hidden_states=True)
    before = [memory.clone() for memory in output.mems]
    for state in output.hidden_states:
        state.detach().zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, output.mems, strict=True))


def storages(tensors):
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def test_memory_keeps_neither_hidden_states_nor_old_memory_alive():
    ours = accelerated(tiny_model(mem_len=None))
    first = ours(random_ids(BATCH, LENGTH))
    second = ours(random_ids(BATCH, LENGTH), mems=first.mems, output_hidden_states=True)
    assert not storages(second.mems) & storages(first.mems)
    assert not storages(second.mems) & storages(second.hidden_states)


def count_calls(monkeypatch, name):
    """The length of the first argument of each call that ``modules`` makes of a function."""
    calls, original = [], getattr(modules, name)

    def counted(*args, **kwargs):
        calls.append(len(args[0]))
        return original(*args, **kwargs)

    monkeypatch.setattr(modules, name, counted)
    return calls


@pytest.mark.parametrize("mem_len", [None, 3])
def test_the_memory_of_all_layers_is_one_call(mem_len, monkeypatch):
    together, apart = (count_calls(monkeypatch, f"concat_memor{end}") for end in ("ies", "y"))
    ours = accelerated(tiny_model(mem_len=mem_len))
    ours(random_ids(BATCH, LENGTH), mems=ours(random_ids(BATCH, LENGTH)).mems)
    # Without memory and with nothing to cut off, the hidden states are the memory.
    assert together == [LAYERS] * (1 if mem_len is None else 2)
    assert not apart


def test_a_layer_that_changes_the_dtype_has_a_memory_of_its_own(monkeypatch):
    """As layers on several devices have: then there is no tensor that could hold all of them."""
    together, apart = (count_calls(monkeypatch, f"concat_memor{end}") for end in ("ies", "y"))
    model = tiny_model(mem_len=3)
    ids = random_ids(BATCH, LENGTH)
    expected = accelerated(model)(ids).mems
    ours = accelerated(model)
    ours.layer[1].double()
    ours.layer[0].register_forward_hook(lambda layer, _, out: (out[0].double(), *out[1:]))
    mems = ours(ids).mems
    assert (len(together), len(apart)) == (1, LAYERS)
    assert [memory.dtype for memory in mems] == [torch.float32] + [torch.float64] * (LAYERS - 1)
    for ours_of, theirs in zip(mems, expected, strict=True):
        torch.testing.assert_close(ours_of.float(), theirs)


def test_cache_mem_of_the_instance_is_called_for_every_layer():
    ours = accelerated(tiny_model(mem_len=3))
    seen = []
    ours.cache_mem = lambda hidden, memory: seen.append(hidden) or hidden[-1:].detach()
    mems = ours(random_ids(BATCH, LENGTH)).mems
    assert len(seen) == LAYERS
    assert [memory.shape[0] for memory in mems] == [1] * LAYERS


def test_memory_in_another_precision_is_converted():
    ours = accelerated(tiny_model(dtype=torch.bfloat16))
    ids, mems = random_ids(BATCH, LENGTH), random_mems(BATCH, 3)
    rounded = [memory.bfloat16() for memory in mems]
    assert torch.equal(ours(ids, mems=mems)[0], ours(ids, mems=rounded)[0])
