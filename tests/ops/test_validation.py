"""Bad input to attention: each error names the argument, what it is and what is expected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hf_oracle import Problem, make_problem, run
from two_sources import apart

from xlnet_fast import ops
from xlnet_fast.errors import ArgumentError, BackendUnavailable, ShapeError
from xlnet_fast.masks import AttentionMask

BACKENDS = ["auto", "sdpa", "reference"]


def call(problem: Problem, backend: str = "auto", **changes: Any) -> torch.Tensor:
    return ops.rel_attention(
        **{**problem.operands, **problem.options, "backend": backend, **changes}
    )


def full_problem(**sizes: Any) -> Problem:
    """Sizes B=4, I=5, J=8, M=3, N=2, D=4 and every optional argument but positions."""
    return make_problem(mask="all parts", segments=2, **sizes)


OPERANDS = ["q", "k", "v", "r", "r_w_bias", "r_r_bias", "r_s_bias", "seg_embed"]
INTEGERS = ["segments_q", "segments_k", "positions"]


def with_positions() -> Problem:
    return make_problem(mask="left", segments=2, targets=3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPERANDS)
def test_operands_of_a_wrong_rank(name, backend):
    problem = full_problem()
    x = problem.operands[name]
    with pytest.raises(ShapeError, match=rf"\b{name} has shape \({x.shape[0]},.*expected"):
        call(problem, backend, **{name: x[..., 0]})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPERANDS)
def test_operands_of_a_wrong_size(name, backend):
    problem = full_problem()
    x = problem.operands[name]
    # q decides what is expected of the others, so a short q is an error of k.
    named = "k" if name == "q" else name
    with pytest.raises(ShapeError, match=rf"\b{named} has shape .*expected"):
        call(problem, backend, **{name: x[..., :-1]})


@pytest.mark.parametrize("name", ["k", "v"])
def test_keys_and_values_of_a_wrong_length_or_batch(name):
    problem = full_problem()
    x = problem.operands[name]
    with pytest.raises(ShapeError, match=rf"\b{name} has .*expected"):
        call(problem, **{name: x[:, :-1]})
    with pytest.raises(ShapeError, match=rf"\b{name} has .*expected \(4, 8, 2, 4\)"):
        call(problem, **{name: x[:-1]})


@pytest.mark.parametrize("name", OPERANDS)
def test_operands_of_another_dtype(name):
    problem = full_problem()
    changed = {name: problem.operands[name].float()}
    with pytest.raises(ArgumentError, match=r"has dtype .*expected that of q"):
        call(problem, **changed)


@pytest.mark.parametrize("name", OPERANDS)
def test_integer_operands(name):
    problem = full_problem()
    with pytest.raises(ArgumentError, match=rf"\b{name} has dtype torch.int64"):
        call(problem, **{name: problem.operands[name].long()})


@pytest.mark.parametrize("name", OPERANDS[1:])
def test_operands_on_another_device(name):
    problem = full_problem()
    with pytest.raises(ArgumentError, match=rf"\b{name} is on meta, expected .* q: cpu"):
        call(problem, **{name: problem.operands[name].to("meta")})


@pytest.mark.parametrize("name", OPERANDS[:6])
@pytest.mark.parametrize("value", [None, [1.0], 3])
def test_operands_that_are_no_tensors(name, value):
    with pytest.raises(ArgumentError, match=rf"\b{name} must be a tensor .*got"):
        call(full_problem(), **{name: value})


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_arguments(name):
    problem = with_positions()
    x = problem.options[name]
    with pytest.raises(ShapeError, match=rf"\b{name} has shape .*expected \(4, "):
        call(problem, **{name: x[:, :-1]})
    with pytest.raises(ShapeError, match=rf"\b{name} has shape \(4,\), expected 2 dimensions"):
        call(problem, **{name: x[:, 0]})
    with pytest.raises(ArgumentError, match=rf"\b{name} has dtype .*expected int32 or int64"):
        call(problem, **{name: x.float()})
    with pytest.raises(ArgumentError, match=rf"\b{name} is on meta, expected"):
        call(problem, **{name: x.to("meta")})


@pytest.mark.parametrize("name", ["r_s_bias", "seg_embed", "segments_q", "segments_k"])
def test_half_of_the_segment_arguments(name):
    with pytest.raises(ArgumentError, match=rf"segments need all of .*missing: \['{name}'\]"):
        call(full_problem(), **{name: None})


@pytest.mark.parametrize("part", ["key_padding", "rank_q", "rank_k", "bits"])
def test_mask_parts(part):
    problem = full_problem()
    mask = problem.options["mask"]
    x = getattr(mask, part)
    with pytest.raises(ShapeError, match=rf"mask.{part} has shape .*expected \(4, "):
        call(problem, mask=replace(mask, **{part: x[:, :-1]}))
    with pytest.raises(ShapeError, match=rf"mask.{part} has dtype .*expected"):
        call(problem, mask=replace(mask, **{part: x.float()}))
    with pytest.raises(ArgumentError, match=rf"mask.{part} is on meta, expected .* q: cpu"):
        call(problem, mask=replace(mask, **{part: x.to("meta")}))


def test_a_mask_of_another_type():
    with pytest.raises(ArgumentError, match="mask must be an AttentionMask, got Tensor"):
        call(full_problem(), mask=torch.zeros(4, 5, 8))


@pytest.mark.parametrize(
    ("rows", "mask", "message"),
    [(12, "none", r"r has 12 rows, expected at least 13 = L \+ J"), (8, "uni", "least 9 = J")],
)
def test_too_few_rows_of_r(rows, mask, message):
    problem = make_problem(mask=mask)
    with pytest.raises(ShapeError, match=message):
        call(problem, r=problem.operands["r"][:, :rows])


@pytest.mark.parametrize("groups", [0, 3, 8])
def test_groups_that_do_not_divide_the_batch(groups):
    problem = make_problem()
    r = problem.operands["r"].expand(groups or 1, -1, -1, -1)[:groups]
    with pytest.raises(ShapeError, match=f"r has {groups} groups, expected a divisor of .* 4"):
        call(problem, r=r)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("start", [2, -1, 0.0, True, None])
def test_where_the_table_starts(start, backend):
    with pytest.raises(ArgumentError, match=f"r_start is {start}, expected 0, row 0 of r .*or 1"):
        call(full_problem(), backend, r_start=start)


@pytest.mark.parametrize(
    ("mask", "needed"),
    [("left", "12 = L \\+ J - r_start"), ("uni", "8 = J \\+ 1 - r_start, causal")],
)
def test_a_table_that_starts_later_needs_a_row_less(mask, needed):
    problem = make_problem(mask=mask, start=1)
    call(problem, "reference")
    r = problem.operands["r"]
    with pytest.raises(ShapeError, match=f"r has {r.shape[1] - 1} rows, .*at least {needed}"):
        call(problem, "reference", r=r[:, 1:])
    with pytest.raises(ShapeError, match=f"r has {r.shape[1]} rows"):
        call(problem, "reference", r_start=0)


def test_one_table_for_all_heads_of_a_wrong_width():
    problem = make_problem(one_table=True)
    call(problem, "reference")
    with pytest.raises(ShapeError, match=r"r has shape \(1, 13, 1, 3\), expected \(1, 13, 2, 4\)"):
        call(problem, "reference", r=problem.operands["r"][..., :3])


def test_memory_length():
    problem = make_problem()
    with pytest.raises(ShapeError, match=r"k has 8 keys, expected M \+ I = 2 \+ 5"):
        call(problem, memory_length=2)
    with pytest.raises(ArgumentError, match="memory_length must be given together with positions"):
        call(problem, memory_length=None, positions=torch.zeros(4, 5, dtype=torch.int64))
    for value in (-1, 9):
        with pytest.raises(ShapeError, match=f"memory_length is {value}, expected 0 to J = 8"):
            call(problem, memory_length=value, positions=torch.zeros(4, 5, dtype=torch.int64))
    with pytest.raises(ShapeError, match="memory_length is -1"):
        ops.rel_attention(**{**problem.operands, "k": problem.operands["k"][:, :4]}, scale=1.0)


# B=4, L=5, M=3: what is wrong with the memory apart, and what the error says.
PAST = torch.ones(4, 3, 2, 4, dtype=torch.float64)
MEMORY_APART = {
    "alone": ({"v_memory": None}, ArgumentError, r"given together; missing: v_memory"),
    "values alone": ({"k_memory": None}, ArgumentError, r"given together; missing: k_memory"),
    "rank": (
        {"k_memory": torch.ones(4, 3, 2)},
        ShapeError,
        r"k_memory has shape \(4, 3, 2\), expected 4 dimensions \(B, M, N, D\)",
    ),
    "rank of values": ({"v_memory": PAST[0]}, ShapeError, "v_memory has shape .* 4 dimensions"),
    "no tensor": ({"k_memory": [1.0]}, ArgumentError, "k_memory must be a tensor .*B, M, N, D"),
    "length of values": (
        {"v_memory": PAST[:, :2]},
        ShapeError,
        r"v_memory has shape \(4, 2, 2, 4\), expected \(4, 3, 2, 4\) = \(B, M, N, D\)",
    ),
    "batch": ({"k_memory": PAST[:1]}, ShapeError, r"k_memory.*\(4, 3, 2, 4\)"),
    "heads": ({"k_memory": PAST[:, :, :1]}, ShapeError, r"k_memory.*\(4, 3, 2, 4\)"),
    "dtype": ({"k_memory": PAST.float()}, ArgumentError, "k_memory has dtype torch.float32"),
    "device": (
        {"v_memory": PAST.to("meta")},
        ArgumentError,
        "v_memory is on meta",
    ),
    "another M": (
        {"memory_length": 2}, ShapeError, "memory_length is 2, but k_memory has 3 keys"
    ),
    "memory in k too": (
        {"k": torch.ones(4, 8, 2, 4).double()},
        ShapeError,
        r"k has 8 keys beside those of k_memory, expected one per query, I = 5",
    ),
    "values of another length": (
        {"v": torch.ones(4, 4, 2, 4).double()},
        ShapeError,
        r"v has shape \(4, 4, 2, 4\), expected \(4, 5, 2, 4\) = \(B, L, N, D\)",
    ),
    "segments without memory": (
        {"segments_k": torch.ones(4, 5).long()}, ShapeError, r"segments_k.*expected \(4, 8\)"
    ),
    "mask without memory": (
        {"mask": AttentionMask(key_padding=torch.ones(4, 5).bool())},
        ShapeError,
        r"mask.key_padding has shape \(4, 5\), expected \(4, 8\)",
    ),
    "short table": ({"r": torch.ones(1, 12, 2, 4).double()}, ShapeError, "at least 13 = L"),
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", MEMORY_APART)
def test_memory_apart(case, backend):
    changes, error, message = MEMORY_APART[case]
    problem = apart(make_problem(mask="left", segments=2))
    with pytest.raises(error, match=message):
        call(problem, backend, **changes)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_memory_apart_tells_its_length(backend):
    problem = make_problem(mask="left", segments=2, targets=3)
    options = {**problem.options, "memory_length": None}
    told = replace(apart(problem), options=options)
    assert torch.equal(call(told, backend), call(problem, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_stream_memory_apart(backend):
    problem = make_problem(mask="query", segments=2)
    whole = two_stream(problem, backend=backend)
    for ours, expected in zip(two_stream(apart(problem), backend=backend), whole, strict=True):
        assert torch.equal(ours, expected)
    for case in ("alone", "rank", "length of values", "dtype", "memory in k too"):
        changes, error, message = MEMORY_APART[case]
        with pytest.raises(error, match=message):
            two_stream(apart(problem), backend=backend, **changes)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wrong", [5, 6, 2**31])
def test_positions_beyond_the_segment(backend, wrong):
    problem = with_positions()
    positions = problem.options["positions"].clone()
    positions[1, 0] = wrong
    with pytest.raises(ArgumentError, match=rf"positions reach {wrong}, .* has 5 keys: .*most 4"):
        call(problem, backend, positions=positions)


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_negative_position_is_an_absent_row(backend):
    problem = with_positions()
    positions = problem.options["positions"].clone()
    positions[0, 0], positions[1, 1] = -7, -(2**40)
    out = call(problem, backend, positions=positions)
    assert (out[positions < 0] == 0).all()
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_dropout_probabilities(p):
    with pytest.raises(ArgumentError, match=r"dropout_p is .*expected 0 <= dropout_p < 1"):
        call(make_problem(), dropout_p=p, seed=torch.tensor(1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_without_a_seed(backend):
    with pytest.raises(ArgumentError, match="dropout_p > 0 needs seed"):
        call(make_problem(), backend, dropout_p=0.1)


@pytest.mark.parametrize("seed", [torch.tensor(1.0), torch.tensor([1, 2]), 17])
def test_wrong_seeds(seed):
    with pytest.raises(ArgumentError, match=r"seed is .*expected int64 of one element"):
        call(make_problem(), dropout_p=0.1, seed=seed)


def test_backends_that_are_unknown_or_cannot_run():
    problem = make_problem()
    with pytest.raises(ArgumentError, match="unknown backend 'nope', expected one of: auto"):
        call(problem, "nope")
    with pytest.raises(BackendUnavailable, match="it runs on cuda, not on cpu"):
        call(problem, "triton")
    meta = {name: x.to("meta") for name, x in problem.operands.items()}
    with pytest.raises(BackendUnavailable, match="not on meta"):
        call(replace(problem, operands=meta), "sdpa")
    assert call(replace(problem, operands=meta)).device.type == "meta"


def test_head_dim_zero():
    problem = make_problem()
    empty = {name: x[..., :0] for name, x in problem.operands.items()}
    with pytest.raises(ShapeError, match="head dim of at least 1"):
        ops.rel_attention(**empty)


# --- sizes at the edge ---------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "sizes", [{"batch": 0}, {"queries": 0}, {"queries": 0, "memory": 0}, {"batch": 0, "targets": 2}]
)
def test_nothing_in_nothing_out(backend, sizes):
    problem = make_problem(mask="left" if "targets" in sizes else "all parts", segments=2, **sizes)
    result = run(ops.rel_attention, problem, backend=backend)
    assert result["out"].shape == problem.operands["q"].shape
    assert result["out"].numel() == 0
    for name, x in problem.operands.items():
        grad = result[f"d {name}"]
        assert grad.shape == x.shape
        assert (grad == 0).all(), f"{name}: nothing depends on it"


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_key_is_copied(backend):
    problem = make_problem(queries=1, memory=0, segments=2)
    result = run(ops.rel_attention, problem, backend=backend)
    torch.testing.assert_close(result["out"], problem.operands["v"])
    for name in problem.operands:
        if name != "v":
            assert result[f"d {name}"].abs().max() < 1e-12, "softmax over one key is constant"


# --- two streams ---------------------------------------------------------------------------------


def two_stream(problem: Problem, **changes: Any) -> tuple[torch.Tensor, torch.Tensor]:
    x = problem.operands
    arguments: dict[str, Any] = {
        **{name: value for name, value in x.items() if name != "q"},
        "q_h": x["q"],
        "q_g": x["q"].clone(),
        "segments": problem.options.get("segments_k"),
        "mask": problem.options["mask"],
    }
    return ops.two_stream_attention(**{**arguments, **changes})


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_stream_positions(backend):
    problem = make_problem(mask="query", segments=2)
    positions = torch.tensor([[0, 2], [1, 4], [3, -1], [9, 0]])
    q_g = problem.operands["q"][:, :2]
    with pytest.raises(ArgumentError, match="positions reach 9, but the current segment has 5"):
        two_stream(problem, q_g=q_g, positions=positions, backend=backend)
    with pytest.raises(ShapeError, match=r"positions has shape \(4, 1\), expected \(4, 2\)"):
        two_stream(problem, q_g=q_g, positions=positions[:, :1], backend=backend)
    with pytest.raises(ShapeError, match=r"q_g \(without positions\) has shape \(4, 2, 2, 4\)"):
        two_stream(problem, q_g=q_g, backend=backend)


def test_two_stream_names_its_own_arguments():
    problem = make_problem(mask="query", segments=2)
    segments, q = problem.options["segments_k"], problem.operands["q"]
    with pytest.raises(ShapeError, match=r"segments has shape \(4, 7\), expected \(4, 8\)"):
        two_stream(problem, segments=segments[:, :-1])
    with pytest.raises(ShapeError, match=r"segments has shape \(8,\), expected 2 dimensions"):
        two_stream(problem, segments=segments[0])
    with pytest.raises(ArgumentError, match=r"segments has dtype torch.float32"):
        two_stream(problem, segments=segments.float())
    with pytest.raises(ArgumentError, match="missing"):
        two_stream(problem, segments=None)
    with pytest.raises(ArgumentError, match="missing"):
        two_stream(problem, r_s_bias=None)
    with pytest.raises(ArgumentError, match=r"q_g has dtype torch.float32, expected that of q_h"):
        two_stream(problem, q_g=q.float())
    with pytest.raises(ShapeError, match=r"q_g has shape .*expected 4 dimensions"):
        two_stream(problem, q_g=q[0])
    with pytest.raises(ArgumentError, match="q_h must be a tensor"):
        two_stream(problem, q_h=None)
    with pytest.raises(ArgumentError, match="unknown backend 'nope'"):
        two_stream(problem, backend="nope")
    with pytest.raises(ArgumentError, match="needs seed"):
        two_stream(problem, dropout_p=0.5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [0, 3])
def test_two_stream_without_content_or_targets(backend, rows):
    problem = make_problem(mask="query", segments=2)
    positions = torch.zeros(4, 0, dtype=torch.int64)
    out_h, out_g = two_stream(
        problem, q_g=problem.operands["q"][:, :0], positions=positions, backend=backend
    )
    assert out_g.shape == (4, 0, 2, 4)
    assert torch.isfinite(out_h).all()
    nothing = make_problem(mask="query", segments=2, queries=0)
    q_g = torch.randn(4, rows, 2, 4, dtype=torch.float64)
    out_h, out_g = two_stream(
        nothing, q_g=q_g, positions=torch.full((4, rows), -1), backend=backend
    )
    assert out_h.shape == (4, 0, 2, 4)
    assert torch.equal(out_g, torch.zeros_like(q_g))
