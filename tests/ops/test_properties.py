"""Properties that hold whatever the numbers are, and the same bits from the same inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cpu_kernels import FUSED_ON_CPU, ON_CPU, needs_kernels
from hf_oracle import (
    F64,
    MASKS,
    Problem,
    assert_same,
    dense_hidden,
    make_problem,
    positions_of,
    run,
)
from hypothesis import given
from hypothesis import strategies as st
from two_sources import apart, joined

from xlnet_fast import ops, reference
from xlnet_fast.kernels.sdpa import rel_attention as sdpa
from xlnet_fast.masks import AttentionMask

BACKENDS = ["sdpa", "reference"]
ATTENTION = [  # backends of rel_attention, each in a dtype that it takes
    ("sdpa", F64),
    ("reference", F64),
    pytest.param("cpu", torch.float32, marks=needs_kernels),
]


def roundings(dtype: torch.dtype) -> float:
    """1e-12 in float64, and as many roundings in another dtype."""
    return 1e-12 * torch.finfo(dtype).eps / torch.finfo(F64).eps


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    queries = draw(st.integers(1, 9), "L")
    targets = draw(st.one_of(st.none(), st.integers(1, queries)), "targets")
    batch = draw(st.sampled_from([1, 2, 4]), "B")
    groups = draw(st.sampled_from([g for g in (1, 2, 4) if batch % g == 0]), "G")
    return make_problem(
        batch=batch,
        queries=queries,
        memory=draw(st.integers(0, 6), "M"),
        heads=draw(st.integers(1, 3), "N"),
        dim=draw(st.sampled_from([1, 2, 5]), "D"),
        groups=groups,
        mask=draw(st.sampled_from([m for m in MASKS if targets is None or "self" not in m])),
        segments=draw(st.sampled_from([0, 1, 2, 5]), "segment ids"),
        targets=targets,
        seed=draw(st.integers(0, 999), "seed"),
    )


@pytest.mark.parametrize(("backend", "dtype"), ATTENTION)
def test_a_gradient_may_lie_in_any_order(backend, dtype):
    """As of a loss that transposes the probabilities, or takes every other key."""
    scores = torch.randn(2, 3, 5, 9, dtype=dtype)
    weights = torch.randn(2, 3, 9, 5, dtype=dtype)

    def gradient(loss):
        x = scores.clone().requires_grad_()
        return torch.autograd.grad(loss(ops.masked_softmax(x, backend=backend)), x)[0]

    for loss, alike in (
        (lambda p: (p.mT * weights).sum(), lambda p: (p * weights.mT.contiguous()).sum()),
        (lambda p: p[..., ::2].sum(), lambda p: (p * (torch.arange(9) % 2 == 0)).sum()),
        (lambda p: p.sum(), lambda p: (p * torch.ones_like(p)).sum()),
    ):
        actual, expected = gradient(loss), gradient(alike)
        assert (actual - expected).abs().max() <= 4 * roundings(dtype)


@pytest.mark.parametrize("backend", ["sdpa", "reference", pytest.param("cpu", marks=needs_kernels)])
def test_no_key_at_all(backend):
    """Every row is absent then, and zero; so is every gradient."""
    q, k = torch.randn(2, 6, 2, 8, requires_grad=True), torch.randn(2, 0, 2, 8)
    r, bias = torch.randn(1, 1, 2, 8, requires_grad=True), torch.randn(2, 8)
    out = ops.rel_attention(
        q, k, k, r, bias, bias, positions=torch.full((2, 6), -1), memory_length=0, backend=backend
    )
    gradients = torch.autograd.grad(out.sum(), (q, r))
    assert not any(bool(x.any()) for x in (out, *gradients))


@given(problem=problems(), rows=st.integers(1, 5), elements=st.integers(1, 300))
def test_sdpa_is_the_reference(problem, rows, elements):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sdpa, "CHUNK_ROWS", rows)
        patch.setattr(sdpa, "CHUNK_ELEMENTS", elements)
        actual = run(ops.rel_attention, problem, backend="sdpa")
    assert_same(actual, run(reference.rel_attention, problem), 1e-11)


@pytest.mark.parametrize(("backend", "dtype"), ATTENTION)
@given(problem=problems())
def test_where_the_memory_lies_changes_nothing(backend, dtype, problem):
    problem = problem.to(dtype)
    actual = joined(run(ops.rel_attention, apart(problem), backend=backend))
    assert_same(actual, run(ops.rel_attention, problem, backend=backend), 0.0)


@pytest.mark.parametrize(("backend", "dtype"), ATTENTION)
@given(problem=problems())
def test_values_of_one_give_one(backend, dtype, problem):
    """Rows of probabilities sum to one, whatever is hidden; absent rows give zero."""
    problem = problem.to(dtype)
    ones = {**problem.operands, "v": torch.ones_like(problem.operands["v"])}
    out = ops.rel_attention(**ones, **problem.options, backend=backend)
    present = (positions_of(problem) >= 0)[:, :, None, None].to(dtype).expand_as(out)
    torch.testing.assert_close(out, present, atol=roundings(dtype), rtol=0)


@pytest.mark.parametrize(("backend", "dtype"), ATTENTION)
@given(problem=problems())
def test_hidden_keys_do_not_matter(backend, dtype, problem):
    """Other keys and values behind the mask, same output in every row that sees something."""
    problem = problem.to(dtype)
    batch, _, keys, memory = problem.sizes
    hidden = dense_hidden(problem.options["mask"], positions_of(problem), keys, memory)
    sighted = ~hidden.all(-1)  # (B, I)
    unseen = (hidden | ~sighted[..., None]).all(1)  # (B, J): no row that sees anything sees it
    changed = dict(problem.operands)
    for name in ("k", "v"):
        noise = 100 * torch.randn_like(changed[name])
        changed[name] = torch.where(unseen[:, :, None, None], noise, changed[name])
    before = ops.rel_attention(**problem.operands, **problem.options, backend=backend)
    after = ops.rel_attention(**changed, **problem.options, backend=backend)
    assert before.shape[0] == batch
    limit = roundings(dtype)
    torch.testing.assert_close(after[sighted], before[sighted], atol=limit, rtol=limit)


@pytest.mark.parametrize(("backend", "dtype"), ATTENTION)
@given(seed=st.integers(0, 999), memory=st.integers(0, 5))
def test_permuting_keys_permutes_nothing_without_positions(backend, dtype, seed, memory):
    """With r = 0 attention is a sum over a set: ranks, padding and segments move with the keys."""
    problem = make_problem(memory=memory, mask="query", segments=3, seed=seed).to(dtype)
    g = torch.Generator().manual_seed(seed)
    batch, _, keys, _ = problem.sizes
    padding = torch.rand(batch, keys, generator=g) < 0.3
    order = torch.randperm(keys, generator=g)
    x, options = problem.operands, problem.options
    mask = replace(options["mask"], key_padding=padding)
    nowhere = {**x, "r": torch.zeros_like(x["r"])}
    moved = {**nowhere, "k": x["k"][:, order], "v": x["v"][:, order]}
    moved_mask = replace(mask, key_padding=padding[:, order], rank_k=mask.rank_k[:, order])
    expected = ops.rel_attention(**nowhere, **{**options, "mask": mask}, backend=backend)
    moved_options = {
        **options, "mask": moved_mask, "segments_k": options["segments_k"][:, order]
    }  # fmt: skip
    actual = ops.rel_attention(**moved, **moved_options, backend=backend)
    torch.testing.assert_close(actual, expected, atol=roundings(dtype), rtol=roundings(dtype))


@pytest.mark.parametrize(("backend", "dtype"), ATTENTION)
@given(seed=st.integers(0, 999))
def test_rows_of_queries_are_independent(backend, dtype, seed):
    """Permuting (query, position) pairs permutes the output."""
    problem = make_problem(queries=6, targets=5, mask="query", segments=2, seed=seed).to(dtype)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    options = dict(problem.options)
    for name in ("positions", "segments_q"):
        options[name] = options[name][:, order]
    options["mask"] = replace(options["mask"], rank_q=options["mask"].rank_q[:, order])
    moved = {**problem.operands, "q": problem.operands["q"][:, order]}
    expected = ops.rel_attention(**problem.operands, **problem.options, backend=backend)
    actual = ops.rel_attention(**moved, **options, backend=backend)
    limit = roundings(dtype)
    torch.testing.assert_close(actual, expected[:, order], atol=limit, rtol=limit)


@pytest.mark.parametrize("backend", BACKENDS)
@given(problem=problems(), shift=st.floats(-50, 50))
def test_probabilities(backend, problem, shift):
    """``masked_softmax``: rows sum to one, hidden keys get zero, a shift of all scores nothing."""
    batch, rows, keys, memory = problem.sizes
    options = {name: problem.options.get(name) for name in ("mask", "positions", "memory_length")}
    scores = torch.randn(batch, 2, rows, keys, dtype=F64)
    p = ops.masked_softmax(scores, **options, backend=backend)
    torch.testing.assert_close(p.sum(-1), torch.ones_like(p[..., 0]), atol=1e-12, rtol=0)
    shifted = ops.masked_softmax(scores + shift, **options, backend=backend)
    torch.testing.assert_close(shifted, p, atol=1e-12, rtol=1e-9)
    hidden = dense_hidden(options["mask"], positions_of(problem), keys, memory)
    blind = hidden.all(-1, keepdim=True)
    assert (p[(hidden & ~blind)[:, None].expand_as(p)] == 0).all()
    uniform = p[blind[:, None].expand_as(p)]
    torch.testing.assert_close(uniform, torch.full_like(uniform, 1 / keys), atol=1e-15, rtol=0)


@given(
    length=st.integers(0, 6), memory=st.integers(-1, 6), mem_len=st.integers(0, 12),
    reuse_len=st.integers(0, 8),
)  # fmt: skip
def test_memory_is_what_was_seen_last(length, memory, mem_len, reuse_len):
    hidden = 100 + torch.arange(length).float()[:, None, None]
    earlier = None if memory < 0 else torch.arange(memory).float()[:, None, None]
    new = ops.concat_memory(hidden, earlier, mem_len, reuse_len)
    seen = [*range(max(memory, 0)), *(100 + i for i in range(length) if not 0 < reuse_len <= i)]
    assert new.flatten().tolist() == (seen[-mem_len:] if mem_len else seen)


# --- the same inputs, the same bits ---------------------------------------------------------------


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("targets", [None, 13])
def test_same_inputs_same_bits(backend, dtype, targets):
    problem = make_problem(
        queries=33, memory=17, dim=16, mask="query", segments=2, targets=targets
    ).to(dtype)
    more: dict[str, Any] = {"dropout_p": 0.1, "seed": torch.tensor(2), "backend": backend}
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (run(ops.rel_attention, problem, **more) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    free = run(ops.rel_attention, problem, **more)
    for other in (second, free):
        for name, value in first.items():
            assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("backend", FUSED_ON_CPU)
def test_inputs_are_left_alone(backend):
    problem = make_problem(mask="content", segments=2).to(torch.float32)
    mask = problem.options["mask"]
    tensors = [*problem.operands.values(), *(x for x in mask.tensors if x is not None)]
    before = [x.clone() for x in tensors]
    run(ops.rel_attention, problem, backend=backend, dropout_p=0.5, seed=torch.tensor(1))
    scores = torch.randn(4, 2, 5, 8)
    copy = scores.clone()
    ops.masked_softmax(scores, mask=AttentionMask(causal=True), backend="sdpa")
    assert torch.equal(scores, copy)
    for x, old in zip(tensors, before, strict=True):
        assert torch.equal(x, old)


def test_another_seed_is_another_mask_and_no_dropout_is_none():
    problem = make_problem()
    outs = [
        ops.rel_attention(
            **problem.operands, **problem.options, dropout_p=p, seed=torch.tensor(seed)
        )
        for p, seed in [(0.5, 1), (0.5, 2), (0.0, 1)]
    ]
    assert not torch.equal(outs[0], outs[1])
    assert torch.equal(outs[2], ops.rel_attention(**problem.operands, **problem.options))


def test_dropout_keeps_the_mean():
    problem = make_problem(batch=4, queries=4)
    arguments = {**problem.operands, **problem.options}
    outs = [
        ops.rel_attention(**arguments, dropout_p=0.25, seed=torch.tensor(seed))
        for seed in range(400)
    ]
    stacked = torch.stack(outs)
    standard_error = stacked.std(0) / 20
    deviation = (stacked.mean(0) - ops.rel_attention(**arguments)).abs()
    assert (deviation <= 5 * standard_error).all()
