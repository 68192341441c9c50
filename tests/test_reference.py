"""The reference against Hugging Face's own code in float64: output and every gradient to 1e-12."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hf_oracle import (
    F64,
    MASKS,
    assert_same,
    dense_hidden,
    hf_attention,
    hf_core,
    hf_layer,
    make_problem,
    positions_of,
    run,
    tiny_config,
)
from torch import Tensor
from torch.nn import functional as F
from transformers import XLNetModel
from two_sources import apart, joined

from xlnet_fast import reference
from xlnet_fast.masks import AttentionMask, pack_bits
from xlnet_fast.philox import keep_mask

TIGHT = 1e-12


# --- one stream --------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("memory", [0, 3])
@pytest.mark.parametrize("segments", [0, 3])
def test_masks_memory_and_segments(mask, memory, segments):
    problem = make_problem(mask=mask, memory=memory, segments=segments)
    assert_same(run(reference.rel_attention, problem), run(hf_attention, problem), TIGHT)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("mask", ["left", "uni"])
def test_groups_of_positions(groups, mask):
    problem = make_problem(mask=mask, groups=groups, segments=2)
    assert_same(run(reference.rel_attention, problem), run(hf_attention, problem), TIGHT)


@pytest.mark.parametrize(("queries", "memory"), [(1, 0), (1, 6), (2, 0), (9, 1), (3, 17)])
@pytest.mark.parametrize("mask", ["none", "uni", "content"])
def test_lengths(queries, memory, mask):
    problem = make_problem(queries=queries, memory=memory, mask=mask, segments=2)
    assert_same(run(reference.rel_attention, problem), run(hf_attention, problem), TIGHT)


@pytest.mark.parametrize("mask", ["none", "left", "query", "bits", "bits of all", "uni right"])
@pytest.mark.parametrize("groups", [1, 2])
def test_positions_against_target_mapping(mask, groups):
    problem = make_problem(mask=mask, groups=groups, queries=6, targets=4, memory=2, segments=3)
    actual = run(reference.rel_attention, problem)
    assert_same(actual, run(hf_attention, problem), TIGHT)
    absent = problem.options["positions"] < 0
    assert absent.any()
    assert (actual["out"][absent] == 0).all()
    assert (actual["d q"][absent] == 0).all()


@pytest.mark.parametrize("mask", ["left", "query", "same_length"])
@pytest.mark.parametrize("targets", [None, 4])
@pytest.mark.parametrize("memory", [0, 1, 5])
def test_memory_in_tensors_of_its_own(mask, targets, memory):
    problem = make_problem(mask=mask, targets=targets, memory=memory, segments=2)
    actual = joined(run(reference.rel_attention, apart(problem)))
    assert_same(actual, run(reference.rel_attention, problem), 0.0)
    told = apart(problem).options.copy()
    del told["memory_length"]  # the number of its keys tells M
    out = reference.rel_attention(**apart(problem).operands, **told)
    assert torch.equal(out, actual["out"])


@pytest.mark.parametrize("rows", [1, 3, 4])
@pytest.mark.parametrize("targets", [None, 5])
@pytest.mark.parametrize("mask", MASKS)
def test_blocks_of_rows_are_hugging_faces_attention(mask, targets, rows, monkeypatch):
    problem = make_problem(queries=8, mask=mask, segments=2, targets=targets, groups=2)
    expected = run(hf_attention, problem)
    monkeypatch.setattr(reference, "ROWS_AT_ONCE", rows)
    assert_same(run(reference.rel_attention, problem), expected, TIGHT)


@pytest.mark.parametrize("mask", ["left", "uni", "window", "chunks right"])
@pytest.mark.parametrize("start", [0, 1])
def test_blocks_of_rows_read_their_rows_of_the_table_and_drop_alike(mask, start, monkeypatch):
    problem = make_problem(queries=8, mask=mask, segments=2, start=start)
    dropout = {"dropout_p": 0.4, "seed": torch.tensor(7)}
    expected = run(reference.rel_attention, problem, **dropout)
    monkeypatch.setattr(reference, "ROWS_AT_ONCE", 3)
    assert_same(run(reference.rel_attention, problem, **dropout), expected, TIGHT)


def test_two_rows_at_one_position_are_two_rows():
    problem = make_problem(queries=6, targets=3, mask="query", segments=2)
    positions = problem.options["positions"].clone()
    positions[:, 1] = positions[:, 0]
    options = {**problem.options, "positions": positions}
    options["mask"] = replace(
        options["mask"], rank_q=options["mask"].rank_q[:, [0, 0, 2]].contiguous()
    )
    options["segments_q"] = options["segments_q"][:, [0, 0, 2]]
    out = run(reference.rel_attention, replace(problem, options=options))["out"]
    for row in range(2):
        q = problem.operands["q"].clone()
        q[:, 0] = problem.operands["q"][:, row]
        alone = replace(problem, operands={**problem.operands, "q": q})
        expected = hf_attention(**alone.operands, **alone.options)[:, 0]
        torch.testing.assert_close(out[:, row], expected, atol=TIGHT, rtol=TIGHT)


@pytest.mark.parametrize("mask", ["nothing visible", "bits"])
def test_a_row_that_sees_nothing_is_uniform(mask):
    problem = make_problem(mask=mask, segments=2)
    out = run(reference.rel_attention, problem)["out"]
    mean = problem.operands["v"].mean(1)
    rows = range(out.shape[1]) if mask == "nothing visible" else (0, out.shape[1] - 1)
    for row in rows:
        torch.testing.assert_close(out[:, row], mean, atol=TIGHT, rtol=TIGHT)


def test_segment_ids_matter_only_where_they_differ():
    problem = make_problem(segments=2, memory=2)
    renamed = {
        name: torch.where(problem.options[name] == 1, 977, -3)
        for name in ("segments_q", "segments_k")
    }
    other = replace(problem, options={**problem.options, **renamed})
    assert_same(run(reference.rel_attention, other), run(reference.rel_attention, problem), 0.0)


def test_not_a_number_in_padding_stays_there():
    problem = make_problem(mask="left", segments=2)
    clean = run(reference.rel_attention, problem)
    padded = problem.options["mask"].key_padding
    operands = dict(problem.operands)
    for name in ("k", "v"):
        operands[name] = operands[name].masked_fill(padded[..., None, None], float("nan"))
    dirty = run(reference.rel_attention, replace(problem, operands=operands))
    for name, value in dirty.items():
        assert torch.isfinite(value).all(), name
    # No row here sees nothing, so what padding holds cannot matter.
    hidden = dense_hidden(problem.options["mask"], positions_of(problem), 8, 3)
    assert not hidden.all(-1).any()
    assert_same(dirty, clean, TIGHT)


@pytest.mark.parametrize("mask", ["left", "query"])
def test_dropout_is_hugging_faces_with_our_mask(mask):
    problem = make_problem(mask=mask, segments=2)
    batch, queries, keys, _ = problem.sizes
    seed, p = torch.tensor(5), 0.4
    keep = keep_mask(seed, p, batch, 2, (0, queries), keys)
    assert 0 < int(keep.sum()) < keep.numel()
    expected = run(hf_attention, problem, keep=keep, dropout_p=p)
    assert_same(run(reference.rel_attention, problem, seed=seed, dropout_p=p), expected, TIGHT)


def test_dropout_needs_a_seed():
    with pytest.raises(ValueError, match="needs a seed"):
        run(reference.rel_attention, make_problem(), dropout_p=0.5)


# Not for rows that see nothing: their scores have, as in HF, a gradient that -1e30 makes invisible
# to finite differences.
@pytest.mark.parametrize("mask", ["content", "left", "uni"])
@pytest.mark.parametrize("targets", [None, 3])
def test_gradcheck(mask, targets):
    problem = make_problem(
        batch=2, queries=3, memory=2, dim=2, segments=2, mask=mask, targets=targets
    )
    leaves = {name: x.requires_grad_() for name, x in problem.operands.items()}

    def call(*values: Tensor) -> Tensor:
        operands = dict(zip(leaves, values, strict=True))
        seed = torch.tensor(3)
        return reference.rel_attention(**operands, **problem.options, dropout_p=0.2, seed=seed)

    assert torch.autograd.gradcheck(call, tuple(leaves.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_output_has_the_dtype_of_the_queries(dtype):
    problem = make_problem(mask="left", segments=2).to(dtype)
    for name, value in run(reference.rel_attention, problem).items():
        assert value.dtype == dtype, name
        assert torch.isfinite(value).all(), name


# --- a whole layer: HF's forward with g ----------------------------------------------------------


def our_layer(
    layer: torch.nn.Module,
    attend: Callable[..., tuple[Tensor, Tensor]],
    h: Tensor,
    g: Tensor,
    r: Tensor,
    mems: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """HF's ``forward`` with our attention.

    h (L, B, H), g (L', B, H), r (P, G, H), mems (M, B, H).
    """
    cat = h if mems is None else torch.cat([mems, h])

    def project(x: Tensor, weight: Tensor) -> Tensor:
        return torch.einsum("ibh,hnd->bind", x, weight)

    out_h, out_g = attend(
        project(h, layer.q),
        project(g, layer.q),
        project(cat, layer.k),
        project(cat, layer.v),
        project(r, layer.r),
        layer.r_w_bias,
        layer.r_r_bias,
        r_s_bias=layer.r_s_bias,
        seg_embed=layer.seg_embed,
        scale=layer.scale,
        **options,
    )
    return layer.post_attention(h, out_h.transpose(0, 1)), layer.post_attention(
        g, out_g.transpose(0, 1)
    )


@pytest.mark.parametrize("memory", [0, 3])
@pytest.mark.parametrize("mask", ["left", "query", "bits", "uni right"])
@pytest.mark.parametrize("targets", [None, 4])
def test_two_streams_against_forward_with_g(memory, mask, targets):
    length, batch, width = 6, 4, 8
    keys = memory + length
    layer = hf_layer()
    problem = make_problem(queries=length, memory=memory, mask=mask, segments=3, targets=targets)
    ours = MASKS[mask](batch, length, keys, torch.Generator().manual_seed(0))
    segments = problem.options["segments_k"]
    positions = problem.options.get("positions")
    rows = length if targets is None else targets
    uni = ours.causal
    leaves = {
        "input h": torch.randn(length, batch, width, dtype=F64),
        "input g": torch.randn(rows, batch, width, dtype=F64),
        "input r": torch.randn(keys + 1 if uni else keys + length, 1, width, dtype=F64),
    }
    if memory:
        leaves["input mems"] = torch.randn(memory, batch, width, dtype=F64)
    leaves |= dict(layer.named_parameters())
    mapping = None
    if positions is not None:
        mapping = F.one_hot(positions.clamp(min=0), length) * (positions >= 0)[..., None]
        mapping = mapping.permute(1, 2, 0).to(F64)
    all_rows = torch.arange(length).expand(batch, length)
    dense = {
        stream: dense_hidden(replace(ours, see_self=stream == "h"), all_rows, keys, memory)
        for stream in "hg"
    }
    float_masks = [dense[stream].permute(1, 2, 0)[..., None].to(F64) for stream in "hg"]
    differ = segments[:, memory:, None] != segments[:, None, :]
    seg_mat = F.one_hot(differ.permute(1, 2, 0).long(), 2).to(F64)

    h, g, r, mems = (leaves.get(f"input {name}") for name in ("h", "g", "r", "mems"))

    def hf() -> tuple[Tensor, Tensor]:
        table = r.expand(-1, batch, -1)
        return layer(h, g, *float_masks, table, seg_mat, mems=mems, target_mapping=mapping)[:2]

    def us() -> tuple[Tensor, Tensor]:
        return our_layer(
            layer, reference.two_stream_attention, h, g, r, mems,
            segments=segments, mask=ours, positions=positions,
        )  # fmt: skip

    assert_same(outputs_and_grads(us, leaves), outputs_and_grads(hf, leaves), TIGHT)


def outputs_and_grads(
    call: Callable[[], tuple[Tensor, ...]], leaves: dict[str, Tensor]
) -> dict[str, Tensor]:
    for leaf in leaves.values():
        leaf.grad = None
        leaf.requires_grad_()
    outs = call()
    weights = [torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out) for out in outs]
    sum((out * weight.cos()).sum() for out, weight in zip(outs, weights, strict=True)).backward()
    result = {f"out {i}": out.detach() for i, out in enumerate(outs)}
    return result | {f"d {name}": leaf.grad.clone() for name, leaf in leaves.items()}


@pytest.mark.parametrize(("attn_type", "clamp_len"), [("bi", -1), ("bi", 2), ("uni", -1)])
def test_both_directions_of_bi_data(attn_type, clamp_len):
    """HF gives each half of the batch its own position table: two groups to us."""
    length, memory, batch = 5, 2, 4
    config = tiny_config(bi_data=True, attn_type=attn_type, clamp_len=clamp_len)
    model = XLNetModel(config)
    uni = attn_type == "uni"
    table = model.relative_positional_encoding(length, memory + length, bsz=batch).to(F64)
    weight = torch.randn(8, 2, 4, dtype=F64)
    r = torch.einsum("pbh,hnd->bpnd", table, weight)
    assert torch.equal(r[0], r[1])
    assert not torch.equal(r[0], r[2])
    problem = make_problem(
        batch=batch, queries=length, memory=memory, segments=2, mask="uni" if uni else "left"
    )
    assert r.shape[1] == problem.operands["r"].shape[1]
    ours = replace(problem, operands={**problem.operands, "r": r[[0, 2]]})
    theirs = replace(problem, operands={**problem.operands, "r": r})
    actual, expected = run(reference.rel_attention, ours), run(hf_attention, theirs)
    expected["d r"] = expected["d r"].view(2, 2, *r.shape[1:]).sum(1)
    assert_same(actual, expected, TIGHT)


# --- masked_softmax, concat_memory ---------------------------------------------------------------


@pytest.mark.parametrize("mask", ["none", "left", "bits", "uni", "content"])
@pytest.mark.parametrize("segments", [0, 2])
def test_masked_softmax_gives_hugging_faces_probabilities(mask, segments):
    problem = make_problem(mask=mask, segments=segments)
    batch, queries, keys, memory = problem.sizes
    x, options = problem.operands, problem.options
    hidden = dense_hidden(options["mask"], positions_of(problem), keys, memory)
    differ = None
    scores: dict[str, Any] = {
        "position_scores": torch.einsum("bind,pnd->bnip", x["q"] + x["r_r_bias"], x["r"][0])
    }
    if segments:
        differ = options["segments_q"][:, :, None] != options["segments_k"][:, None, :]
        difference = x["seg_embed"][1] - x["seg_embed"][0]
        scores |= {
            "segment_scores": torch.einsum("bind,nd->bni", x["q"] + x["r_s_bias"], difference),
            "segments_q": options["segments_q"],
            "segments_k": options["segments_k"],
        }
    content = torch.einsum("bind,bjnd->bnij", x["q"] + x["r_w_bias"], x["k"])
    operands = {**x, "r": x["r"].expand(batch, -1, -1, -1)}
    _, expected = hf_core(**operands, differ=differ, hidden=hidden, scale=options["scale"])
    actual = reference.masked_softmax(
        content,
        **scores,
        mask=options["mask"],
        memory_length=memory,
        scale=options["scale"],
    )
    torch.testing.assert_close(actual, expected, atol=TIGHT, rtol=TIGHT)
    torch.testing.assert_close(actual.sum(-1), torch.ones(batch, 2, queries, dtype=F64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masked_softmax_of_half_precision_is_computed_in_fp32(dtype):
    """One rounding of the result, none of the sum of the terms, and no overflow of -1e30."""
    keys = 300
    scores = (torch.randn(2, 2, 4, keys, dtype=F64) * 8).to(dtype)
    position_scores = (torch.randn(2, 2, 4, keys + 4, dtype=F64) * 8).to(dtype)
    hidden = torch.rand(2, 4, keys) < 0.5
    hidden[:, 0] = True
    options = {"mask": AttentionMask(bits=pack_bits(hidden)), "scale": 0.37}
    actual = reference.masked_softmax(scores, position_scores=position_scores, **options)
    exact = reference.masked_softmax(
        scores.to(F64), position_scores=position_scores.to(F64), **options
    )
    assert actual.dtype == dtype
    smallest = torch.finfo(dtype).tiny
    torch.testing.assert_close(actual, exact.to(dtype), atol=smallest, rtol=torch.finfo(dtype).eps)
    uniform = torch.tensor(1 / keys, dtype=dtype)
    assert (actual[:, :, 0] == uniform).all()


def hf_cache_mem(
    current: Tensor, memory: Tensor | None, mem_len: int | None, reuse_len: int | None
) -> Tensor:
    model = SimpleNamespace(mem_len=mem_len, reuse_len=reuse_len)
    return XLNetModel.cache_mem(model, current, memory)


@pytest.mark.parametrize("memory_length", [None, 0, 1, 5])
def test_concat_memory_is_cache_mem(memory_length):
    for lengths in itertools.product((None, 0, 1, 4, 6, 9, 50), (None, 0, 1, 3, 50)):
        hidden = torch.randn(4, 2, 3, requires_grad=True)
        memory = None if memory_length is None else torch.randn(memory_length, 2, 3)
        expected = hf_cache_mem(hidden, memory, *lengths)
        actual = reference.concat_memory(hidden, memory, *lengths)
        assert torch.equal(actual, expected), lengths
        assert not actual.requires_grad
        before = actual.clone()
        with torch.no_grad():
            hidden.zero_()
            if memory is not None:
                memory.zero_()
        assert torch.equal(actual, before), f"the new memory is that of its sources: {lengths}"


@pytest.mark.parametrize("queries", [0, 1, 5])
@pytest.mark.parametrize(("memory", "current"), [(0, 5), (4, 5), (3, 2), (0, 1)])
@pytest.mark.parametrize(("table", "start"), [(1, 0), (6, 3), (20, 0), (20, 9), (6, 30)])
def test_rows_in_order_need_no_gather(queries, memory, current, table, start):
    """Whatever r has too few or too many of, and however many rows the call has."""
    keys = memory + current
    scores = torch.randn(2, 3, queries, table, dtype=F64)
    rows = torch.arange(queries)[None]
    expected = reference.skew(scores, rows, keys, memory, start)
    found = reference.skew_in_order(scores, keys, memory, start)
    assert torch.equal(found, expected)


def test_the_index_identity_is_rel_shift():
    """``skew`` against HF's reshaping, where every element of the table is a different number."""
    batch, heads, queries, memory = 2, 3, 4, 5
    keys = memory + queries
    table = torch.arange(batch * heads * queries * (keys + queries), dtype=F64)
    table = table.view(batch, heads, queries, keys + queries)
    hf = hf_layer().rel_shift_bnij(table, klen=keys)
    rows = torch.arange(queries)[None]
    assert torch.equal(reference.skew(table, rows, keys, memory), hf)
    short = reference.skew(table[..., : keys + 1], rows, keys, memory)
    visible = AttentionMask(causal=True).hidden(rows, keys, memory).logical_not()
    assert torch.equal(short, hf * visible)
