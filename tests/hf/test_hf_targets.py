"""Two streams: every kind of target_mapping, any permutation, and the compact arguments."""

from __future__ import annotations

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
from transformers import XLNetLMHeadModel, XLNetModel

from xlnet_fast.hf.families.xlnet.inputs import compact_targets

BATCH, LENGTH = 2, 6


def mapping_of(kind: str) -> torch.Tensor:
    """(B, I', I) of one kind."""
    generator = torch.Generator().manual_seed(3)
    if kind == "one-hot":
        return one_hot_targets([[4, 0, 2], [5, 1, 3]], LENGTH)
    if kind == "zero rows":
        return one_hot_targets([[-1, 3, -1], [2, -1, -1]], LENGTH)
    if kind == "all rows zero":
        return torch.zeros(BATCH, 3, LENGTH)
    if kind == "repeated positions":
        return one_hot_targets([[4, 4, 2], [1, 1, 1]], LENGTH)
    if kind == "every position, shuffled":
        orders = [torch.randperm(LENGTH, generator=generator) for _ in range(BATCH)]
        return torch.eye(LENGTH)[torch.stack(orders)]
    if kind == "more rows than tokens":
        return one_hot_targets([[0, 1, 2, 3, 4, 5, -1, -1], [-1, 5, 4, 3, 2, 1, 0, -1]], LENGTH)
    if kind == "two ones in a row":
        return one_hot_targets([[4, 0], [5, 1]], LENGTH) + one_hot_targets([[3, 2], [2, 3]], LENGTH)
    if kind == "scaled one-hot":
        return 0.5 * one_hot_targets([[4, 0], [5, 1]], LENGTH)
    assert kind == "dense"
    return torch.randn(BATCH, 4, LENGTH, generator=generator)


COMPACT = ["one-hot", "zero rows", "all rows zero", "every position, shuffled",
           "more rows than tokens"]  # fmt: skip
DENSE = ["repeated positions", "two ones in a row", "scaled one-hot", "dense"]


def inputs_of(kind: str, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed + 10)
    return {
        "input_ids": random_ids(BATCH, LENGTH, seed),
        "token_type_ids": random_ids(BATCH, LENGTH, seed + 1) % 2,
        "mems": random_mems(BATCH, 3, seed),
        "perm_mask": (torch.rand(BATCH, LENGTH, LENGTH, generator=generator) < 0.5).float(),
        "attention_mask": padding(BATCH, LENGTH, "right"),
        "target_mapping": mapping_of(kind),
    }


@pytest.mark.parametrize("kind", [*COMPACT, *DENSE])
@pytest.mark.parametrize("attn_type", ["bi", "uni"])
def test_every_mapping_in_float64(kind, attn_type):
    model = tiny_model(dtype=F64, attn_type=attn_type)
    inputs = in_dtype(inputs_of(kind), F64)
    if attn_type == "uni":
        del inputs["perm_mask"], inputs["attention_mask"]  # HF raises for these at batch >= 2
    expected = run(hf_in(model, F64), inputs)
    for backend in ("sdpa", "reference"):
        assert_tight(run(accelerated(model, backend=backend), inputs), expected, backend)


@pytest.mark.parametrize("kind", ["zero rows", "dense"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("backend", FUSED_ON_CPU)
def test_mappings_in_working_precisions(kind, dtype, backend):
    inputs = [inputs_of(kind, seed) for seed in range(8)]
    compare(tiny_model(XLNetModel, dtype), inputs, dtype, backend=backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", FUSED_ON_CPU)
def test_hugging_face_raises_on_two_streams_in_half_precision_and_ours_runs(dtype, backend):
    """HF's table and target_mapping stay fp32; the arguments here are those HF's docs name."""
    model = tiny_model(XLNetLMHeadModel, dtype)
    inputs = inputs_of("one-hot") | {"mems": None}
    with pytest.raises(RuntimeError, match=r"dtype|Float"):
        model(**inputs)
    logits = accelerated(model, backend=backend)(**inputs).logits
    assert logits.dtype == dtype
    assert logits.isfinite().all()


@pytest.mark.parametrize("kind", [*COMPACT, *DENSE])
def test_which_mappings_are_compact(kind):
    positions = compact_targets(mapping_of(kind))
    if kind in DENSE:
        assert positions is None
    else:
        assert positions is not None
        assert torch.equal(one_hot_targets(positions.tolist(), LENGTH), mapping_of(kind))


def test_mapping_with_a_gradient_is_applied_as_it_is():
    model = tiny_model(dtype=F64)
    grads = []
    for candidate in (hf_in(model, F64), accelerated(model)):
        mapping = mapping_of("one-hot").double().requires_grad_()
        candidate(random_ids(BATCH, LENGTH), target_mapping=mapping)[0].square().sum().backward()
        grads.append({"d target_mapping": mapping.grad})
    assert_tight(grads[1], grads[0])


@pytest.mark.parametrize("attentions", [False, True])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_target_positions_equal_the_dense_mapping(attentions, dtype):
    model = accelerated(tiny_model(dtype=F64))
    positions = torch.tensor([[4, 0, -1], [5, -7, 3]], dtype=dtype)
    inputs = in_dtype(inputs_of("one-hot"), F64) | {"output_attentions": attentions}
    dense = inputs | {"target_mapping": one_hot_targets(positions.tolist(), LENGTH).double()}
    compact = inputs | {"target_mapping": None, "target_positions": positions}
    assert_tight(run(model, compact), run(model, dense))


def ranks_and_mask(order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rank of each token in a factorisation order (B, I), and HF's perm_mask for it."""
    rank = order.argsort(1)
    return rank, (rank[:, :, None] <= rank[:, None, :]).double()


@given(st.integers(1, 9), st.integers(1, 3), st.sampled_from([0, 2]), st.integers(0, 99))
def test_permutation_ranks_equal_the_dense_mask(length, batch, memory, seed):
    model = accelerated(tiny_model(dtype=F64))
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(length, generator=generator) for _ in range(batch)])
    rank, perm_mask = ranks_and_mask(order)
    targets = order[:, -((length + 1) // 2) :]
    inputs = {"input_ids": random_ids(batch, length, seed)}
    if memory:
        inputs["mems"] = [m.double() for m in random_mems(batch, memory)]
    dense = {"perm_mask": perm_mask, "target_mapping": torch.eye(length, dtype=F64)[targets]}
    compact = {"permutation_ranks": (rank, rank), "target_positions": targets}
    expected = run(model, inputs | dense)
    assert_tight(run(model, inputs | compact), expected, "both compact")
    mixed = {"permutation_ranks": (rank, rank), "target_mapping": dense["target_mapping"]}
    assert_tight(run(model, inputs | mixed), expected, "ranks")


@pytest.mark.parametrize("attentions", [False, True])
def test_compact_arguments_pass_through_a_head(attentions):
    model = accelerated(tiny_model(XLNetLMHeadModel, F64))
    rank, perm_mask = ranks_and_mask(torch.stack([torch.randperm(LENGTH) for _ in range(BATCH)]))
    inputs = {"input_ids": random_ids(BATCH, LENGTH), "output_attentions": attentions}
    inputs["attention_mask"] = padding(BATCH, LENGTH, "left")
    positions = torch.tensor([[4, 0], [5, 3]])
    mapping = one_hot_targets(positions.tolist(), LENGTH).double()
    compact = {"permutation_ranks": (rank, rank), "target_positions": positions}
    dense = {"perm_mask": perm_mask, "target_mapping": mapping}
    assert_tight(run(model, inputs | compact), run(model, inputs | dense))


def test_asymmetric_ranks():
    """rank_q and rank_k may differ: all tokens of the context have the lowest key rank."""
    model = accelerated(tiny_model(dtype=F64))
    rank_q = torch.tensor([[1, 1, 3, 2]])
    rank_k = torch.tensor([[0, 0, 3, 2]])
    mask = (rank_q[:, :, None] <= rank_k[:, None, :]).double()
    inputs = {"input_ids": random_ids(1, 4), "target_mapping": torch.eye(4)[None].double()}
    actual = run(model, inputs | {"permutation_ranks": (rank_q, rank_k)})
    assert_tight(actual, run(hf_in(tiny_model(dtype=F64), F64), inputs | {"perm_mask": mask}))
