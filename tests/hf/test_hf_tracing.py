"""``torch.jit.trace``: a program that was traced once is right for other values and lengths."""

from __future__ import annotations

import warnings

import pytest
import torch
from cpu_kernels import needs_kernels
from hf_parity import (
    F64,
    LAYERS,
    accelerated,
    assert_tight,
    flatten,
    hf_in,
    one_hot_targets,
    padding,
    random_ids,
    random_mems,
    tiny_model,
)
from torch import nn
from transformers import XLNetForSequenceClassification, XLNetModel

import xlnet_fast.ops  # noqa: F401  whose import registers the ops that a program calls


class ByPosition(nn.Module):
    """A trace takes tensors by position; ``names`` says what they are."""

    def __init__(self, model, names, **options):
        super().__init__()
        self.model, self.names, self.options = model, names, options

    def forward(self, *tensors):
        given = dict(zip(self.names, tensors, strict=True))
        memory = [given.pop(f"memory{n}") for n in range(LAYERS) if f"memory{n}" in given]
        ranks = [given.pop(name) for name in ("rank_q", "rank_k") if name in given]
        if memory:
            given["mems"] = memory
        if ranks:
            given["permutation_ranks"] = tuple(ranks)
        return self.model(**given, **self.options, return_dict=False)


def example(batch, length, memory, names, padded):
    values = {
        "input_ids": random_ids(batch, length),
        "attention_mask": padding(batch, length, "left") if padded else torch.ones(batch, length),
        "token_type_ids": random_ids(batch, length, seed=1) % 2,
        "perm_mask": torch.ones(length, length, dtype=F64).triu().repeat(batch, 1, 1),
        "target_mapping": one_hot_targets([[length - 1, 0]] * batch, length).double(),
        "rank_q": torch.arange(length).repeat(batch, 1),
        "rank_k": torch.arange(length).repeat(batch, 1) + 1,
        "target_positions": torch.tensor([[length - 1, 0]] * batch),
    }
    for number, layer in enumerate(random_mems(batch, memory)):
        values[f"memory{number}"] = layer.double()
    return tuple(values[name] for name in names)


MEMORY = [f"memory{number}" for number in range(LAYERS)]
CASES = {
    "padding": (["attention_mask"], {}, {}),
    "segments": (["attention_mask", "token_type_ids"], {}, {}),
    "memory": (["attention_mask", *MEMORY], {}, {"mem_len": 9}),
    "memory, kept in part": (MEMORY, {}, {"mem_len": 7, "reuse_len": 4}),
    "memory begins": ([], {}, {"mem_len": 6}),
    "causal": (MEMORY, {}, {"attn_type": "uni", "same_length": True, "clamp_len": 3}),
    "two streams": (["attention_mask", "perm_mask", "target_mapping", *MEMORY], {}, {}),
    "probabilities": (["attention_mask", *MEMORY], {"output_attentions": True}, {}),
    "two streams, all outputs": (
        ["perm_mask", "target_mapping", *MEMORY],
        {"output_attentions": True, "output_hidden_states": True},
        {},
    ),
}
OTHERS = [(2, 6, 3), (3, 4, 5), (1, 9, 2)]


def traced(module, given):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings(
            "ignore", category=torch.jit.TracerWarning, module=r"xlnet_fast\."
        )  # as our import does, before what a test run puts above it
        program = torch.jit.trace(module.eval(), given, check_trace=False)
    noise = [w for w in caught if issubclass(w.category, torch.jit.TracerWarning)]
    assert not noise, noise[0].message
    return program


@pytest.mark.parametrize("case", CASES)
def test_one_trace_serves_other_masks_and_lengths(case):
    names, options, config = CASES[case]
    names = ["input_ids", *names]
    model = tiny_model(dtype=F64, **config)
    ours = ByPosition(accelerated(model), names, **options)
    program = traced(ours, example(2, 6, 3, names, padded=False))
    theirs = ByPosition(hf_in(model, F64), names, **options).eval()
    for shape in OTHERS:
        given = example(*shape, names, padded=True)
        assert_tight(flatten(program(*given)), flatten(theirs(*given)), f"{case} {shape}")


def test_compact_arguments():
    names = ["input_ids", "rank_q", "rank_k", "target_positions"]
    ours = ByPosition(accelerated(tiny_model(dtype=F64)), names)
    program = traced(ours, example(2, 6, 0, names, padded=False))
    for shape in OTHERS:
        given = example(*shape, names, padded=True)
        assert_tight(flatten(program(*given)), flatten(ours(*given)))


def test_a_traced_program_is_saved_loaded_and_trained(tmp_path):
    names = ["input_ids", "attention_mask"]
    model = tiny_model(XLNetForSequenceClassification, F64, use_mems_train=False)
    module = ByPosition(accelerated(model), names)
    program = traced(module, example(2, 6, 0, names, padded=False))
    torch.jit.save(program, tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    given = example(3, 8, 0, names, padded=True)
    assert_tight(flatten(loaded(*given)), flatten(module(*given)))
    loaded(*given)[0].sum().backward()
    module(*given)[0].sum().backward()
    for (name, ours), (_, theirs) in zip(
        loaded.named_parameters(), module.named_parameters(), strict=True
    ):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-11, rtol=0)


def test_ids_outside_the_vocabulary_are_found_when_the_program_runs():
    program = traced(ByPosition(accelerated(tiny_model(XLNetModel)), ["input_ids"]),
                     (random_ids(2, 5),))  # fmt: skip
    with pytest.raises((IndexError, RuntimeError), match="index out of range"):
        program(torch.full((2, 5), 10**6))


@needs_kernels
@pytest.mark.parametrize("attentions", [False, True])
def test_a_trace_of_the_cpu_kernels(attentions):
    names = ["input_ids", "attention_mask", "token_type_ids", "rank_q", "rank_k", *MEMORY]
    if not attentions:
        names.append("target_positions")
    module = ByPosition(
        accelerated(tiny_model(), backend="cpu"), names, output_attentions=attentions
    )
    program = traced(module, example(2, 6, 3, names, padded=False))
    for shape in OTHERS:
        given = example(*shape, names, padded=True)
        for ours, theirs in zip(program(*given), module(*given), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
