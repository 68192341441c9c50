"""Backend ``cpu`` against Hugging Face and float64: every instruction set, every dtype."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from typing import Any

import attention_checks as checks
import pytest
import torch
from cpu_kernels import PAIRS, REAL, each_isa, each_kernel, isa, multiplies_bfloat16, needs_kernels
from hf_oracle import MASKS, Problem, _rows_of, assert_same, hf_attention, make_problem, run
from torch import Tensor
from two_sources import apart, joined
from yardstick import Graph, Yardstick

from xlnet_fast import ops, reference
from xlnet_fast.kernels.cpu import instruction_sets
from xlnet_fast.masks import AttentionMask
from xlnet_fast.philox import keep_mask

__all__ = ["isa"]  # a fixture
pytestmark = needs_kernels

attend = functools.partial(ops.rel_attention, backend="cpu")
attend_twice = functools.partial(ops.two_stream_attention, backend="cpu")

# --- the tolerance rule ---------------------------------------------------------------------------

# Twelve heads: the gradient of r_s_bias has one number per head, and of two numbers eager's error
# is a matter of luck. 65 rows are a tile of 48 and one of 17; 82 keys more than a panel.
TILES: dict[str, Any] = {"batch": 2, "queries": 65, "memory": 17, "heads": 12, "dim": 8}
SMALL: dict[str, Any] = {"batch": 4, "queries": 17, "memory": 5, "heads": 12, "dim": 8}
CASES: dict[str, dict[str, Any]] = {
    **{f"mask {mask}": {**TILES, "mask": mask, "segments": 2} for mask in MASKS},
    **{
        f"mask {mask}, targets": {**TILES, "mask": mask, "segments": 2, "targets": 17}
        for mask in MASKS
    },
    "no segments": {**TILES, "mask": "left"},
    "many segments": {**SMALL, "segments": 5},
    **{
        f"groups {groups}, targets {targets}": {
            **SMALL, "mask": "uni right", "groups": groups, "segments": 2, "targets": targets,
        }
        for groups in (1, 2, 4) for targets in (None, 9)
    },
    **{
        f"head dim {dim}": {**SMALL, "batch": 2, "dim": dim, "segments": 2, "mask": "left"}
        for dim in (1, 3, 8, 20, 32, 64, 80, 128)
    },
    **{
        f"{queries} queries, {memory} in memory": {
            **TILES, "queries": queries, "memory": memory, "segments": 2,
        }
        for queries, memory in [(1, 0), (1, 70), (17, 0), (17, 1), (33, 7), (48, 16), (65, 64)]
    },
    "513 queries": {
        "batch": 1, "queries": 513, "memory": 0, "heads": 4, "dim": 4, "segments": 2,
        "mask": "left",
    },
    # So long that a tile has fewer rows than 48.
    "long rows": {"batch": 1, "queries": 31, "memory": 6000, "heads": 4, "dim": 4, "segments": 2},
    # One head's gradients come from several tasks, each of some of the batch.
    **{
        f"batch {batch}, {heads} heads": {
            **SMALL, "batch": batch, "heads": heads, "segments": 2, "mask": "query",
        }
        for batch, heads in [(3, 1), (5, 2), (7, 1)]
    },
    "40 in the batch": {**SMALL, "batch": 40, "queries": 5, "memory": 1, "heads": 2},
}  # fmt: skip


@functools.cache
def yardstick(case: str, dtype: torch.dtype) -> tuple[Problem, Yardstick]:
    problem = make_problem(**CASES[case]).to(dtype)
    return problem, Yardstick(
        hf_attention, reference.rel_attention, problem.operands, **problem.options
    )


def is_worth(case: str, dtype: torch.dtype) -> bool:
    """The dtypes share the code of the masks and of the order of the work."""
    parts = ("mask all parts", "mask all parts, targets")
    shared = case.startswith("mask ") or case in ("513 queries", "long rows")
    return dtype != torch.float16 or not shared or case in parts


@pytest.mark.parametrize(
    ("case", "isa", "dtype"),
    [
        pytest.param(case, *pair.values, id=f"{case}-{pair.id}")
        for case in CASES
        for pair in PAIRS
        if is_worth(case, pair.values[1])
    ],
    indirect=["isa"],
)
def test_accuracy_is_that_of_eager(case, isa, dtype):
    problem, allowed = yardstick(case, dtype)
    allowed.check(Graph(attend, problem.operands, **problem.options))


@pytest.mark.parametrize("isa", ["baseline"], indirect=True)
def test_segment_gradients_are_as_exact_as_eagers_on_the_average(isa):
    """D's rounding, the same for all keys of a row, would add up there: 1.3 times eager's error.

    The rule allows that, as the largest error of so few numbers is a matter of luck.
    """
    names = ("r_s_bias", "seg_embed")
    ours, eagers = (dict.fromkeys(names, 0.0) for _ in range(2))
    for seed in range(10):
        problem = make_problem(
            batch=2, queries=100, memory=0, heads=2, dim=4, segments=2, seed=seed
        ).to(torch.float32)
        wide = {name: x.double() for name, x in problem.operands.items()}
        exact = Graph(reference.rel_attention, wide, **problem.options)
        right = exact.gradients(exact.d_out())
        for squares, attention in ((ours, attend), (eagers, hf_attention)):
            graph = Graph(attention, problem.operands, **problem.options)
            grads = graph.gradients(exact.d_out())
            for name in names:
                squares[name] += float((grads[name] - right[name]).square().sum())
    assert all(ours[name] < eagers[name] for name in names), (ours, eagers)


DROPOUT: dict[str, Any] = {"dropout_p": 0.3, "seed": torch.tensor(-12345)}


@functools.cache
def yardstick_of_dropout(dtype: torch.dtype) -> tuple[Problem, Yardstick]:
    problem = make_problem(**{**TILES, "mask": "left", "segments": 2}).to(dtype)
    batch, rows, keys, _ = problem.sizes
    keep = keep_mask(DROPOUT["seed"], DROPOUT["dropout_p"], batch, 12, (0, rows), keys)

    def eager(dropout_p: float, seed: Tensor, **arguments: Any) -> Tensor:
        return hf_attention(**arguments, keep=keep, dropout_p=dropout_p)

    return problem, Yardstick(
        eager, reference.rel_attention, problem.operands, **problem.options, **DROPOUT
    )


@each_kernel
def test_accuracy_under_dropout(isa, dtype):
    problem, allowed = yardstick_of_dropout(dtype)
    allowed.check(Graph(attend, problem.operands, **problem.options, **DROPOUT))


# --- two streams ----------------------------------------------------------------------------------

POSITIONS = {
    "every row": None,
    "some rows": torch.tensor([[40, 0, 64, 7, -1, 50], [1, 3, 2, -1, 49, 48]]),
}


def two_streams(mask: str, rows: str, dtype: torch.dtype) -> tuple[dict[str, Tensor], Any]:
    """Operands and options of ``ops.two_stream_attention``."""
    problem = make_problem(**{**TILES, "mask": mask, "segments": 2}).to(dtype)
    operands = dict(problem.operands)
    operands["q_h"] = operands.pop("q")
    positions = POSITIONS[rows]
    count = 65 if positions is None else positions.shape[1]
    operands["q_g"] = operands["q_h"].sin()[:, :count]
    options = problem.options
    return operands, {
        "segments": options["segments_k"], "positions": positions, "mask": options["mask"],
        "scale": options["scale"],
    }  # fmt: skip


def hugging_faces_two_streams(
    q_h: Tensor, q_g: Tensor, *, segments: Tensor, positions: Tensor | None,
    mask: AttentionMask, scale: float, **shared: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Each stream by HF's code; the rows of the query stream's mask gathered one by one."""
    memory = shared["k"].shape[1] - q_h.shape[1]
    common = {**shared, "segments_k": segments, "memory_length": memory, "scale": scale}
    of_rows = segments[:, memory:]
    content = hf_attention(q=q_h, **common, segments_q=of_rows, mask=replace(mask, see_self=True))
    query_mask = replace(mask, see_self=False)
    if positions is not None:
        query_mask = _rows_of(query_mask, positions)
        of_rows = of_rows.gather(1, positions.clamp(min=0))
    query = hf_attention(q=q_g, **common, segments_q=of_rows, mask=query_mask, positions=positions)
    return content, query


@functools.cache
def yardstick_of_two_streams(mask: str, rows: str, dtype: torch.dtype) -> Yardstick:
    operands, options = two_streams(mask, rows, dtype)
    return Yardstick(hugging_faces_two_streams, reference.two_stream_attention, operands, **options)


@each_kernel
@pytest.mark.parametrize("rows", POSITIONS)
@pytest.mark.parametrize("mask", ["query", "bits", "left"])
def test_two_streams(mask, rows, isa, dtype):
    operands, options = two_streams(mask, rows, dtype)
    yardstick_of_two_streams(mask, rows, dtype).check(Graph(attend_twice, operands, **options))


@each_kernel
@pytest.mark.parametrize("rows", POSITIONS)
def test_two_streams_are_two_calls_of_one(rows, isa, dtype):
    """Each stream's output and gradient of its queries have the bits they have alone."""
    operands, options = two_streams("query", rows, dtype)
    both = Graph(attend_twice, operands, **options)
    d_out = both.d_out()
    grads = both.gradients(d_out)
    positions, mask, segments = options["positions"], options["mask"], options["segments"]
    shared = {name: x for name, x in operands.items() if name not in ("q_h", "q_g")}
    of_rows, query_mask = segments[:, 17:], replace(mask, see_self=False)
    if positions is not None:
        of_rows = of_rows.gather(1, positions.clamp(min=0))
        query_mask = _rows_of(query_mask, positions)
    common = {"segments_k": segments, "scale": options["scale"], "memory_length": 17}
    content = {"segments_q": segments[:, 17:], "mask": replace(mask, see_self=True)}
    query = {"segments_q": of_rows, "mask": query_mask, "positions": positions}
    parts = d_out.split([65, d_out.shape[1] - 65], 1)
    for name, out, own, part in zip(
        ("q_h", "q_g"), both.outs, (content, query), parts, strict=True
    ):
        alone = Graph(attend, {"q": operands[name], **shared}, **common, **own)
        assert torch.equal(alone.outs[0], out)
        assert torch.equal(alone.gradients(part)["q"], grads[name])


# --- instruction sets -----------------------------------------------------------------------------


@pytest.mark.skipif(len(REAL) < 2, reason="this CPU has the baseline alone")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lower_instruction_set_is_really_taken(dtype):
    """Their roundings differ: no two have the same bits."""
    problem = make_problem(**{**SMALL, "batch": 2, "dim": 64}).to(dtype)
    results = []
    for name in REAL:
        if dtype == torch.float32 and multiplies_bfloat16(name):
            continue
        with instruction_sets.using(name):
            results.append(run(attend, problem))
    assert len(results) >= 2
    for number, result in enumerate(results):
        for other in results[:number]:
            assert any(not torch.equal(x, other[which]) for which, x in result.items())
    assert_same(run(attend, problem), results[-1], 0.0)


# --- what must not matter -------------------------------------------------------------------------

SIZES: dict[str, Any] = {"queries": 50, "dim": 20}  # two tiles of rows; of keys a panel and a bit


@each_kernel
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_padding_may_hold_anything(value, isa, dtype):
    checks.check_padding_may_hold_anything(attend, value, dtype, **{**SIZES, "memory": 20})


@each_kernel
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_padding_in_a_memory_apart_may_hold_anything(value, isa, dtype):
    checks.check_padding_in_a_memory_apart(attend, value, dtype, **SIZES)


@each_kernel
def test_nan_in_a_visible_key_is_not_hidden(isa, dtype):
    problem = make_problem(**SIZES).to(dtype)
    problem.operands["k"][0, 3, 1, 2] = float("nan")
    out = attend(**problem.operands, **problem.options)
    assert out[0, :, 1].isnan().all()
    out[0, :, 1] = 0
    assert not out.isnan().any()


@each_kernel
@pytest.mark.parametrize("mask", ["none", "uni"])
@pytest.mark.parametrize("targets", [None, 7])
def test_rows_of_r_beyond_the_table_are_not_read(mask, targets, isa, dtype):
    checks.check_rows_of_r_beyond_the_table(attend, mask, targets, dtype, **SIZES)


@each_kernel
@pytest.mark.parametrize("keys", [8, 67])
@pytest.mark.parametrize("mask", ["nothing visible", "bits"])
def test_a_row_that_sees_nothing_is_exactly_uniform(mask, keys, isa, dtype):
    checks.check_uniform_rows(attend, dtype, mask, keys)


@functools.cache
def yardstick_of_padding(dtype: torch.dtype) -> tuple[Problem, Yardstick]:
    """Keys 90 to 99 of 200 are real; each row sees them and itself."""
    problem = make_problem(batch=1, queries=200, memory=0, heads=12, dim=8).to(dtype)
    padding = torch.ones(1, 200, dtype=torch.bool)
    padding[0, 90:100] = False
    mask = AttentionMask(key_padding=padding, see_self=True)
    problem = replace(problem, options={**problem.options, "mask": mask})
    return problem, Yardstick(
        hf_attention, reference.rel_attention, problem.operands, **problem.options
    )


@each_kernel
def test_rows_far_from_the_keys_that_all_see_also_see_themselves(isa, dtype):
    problem, allowed = yardstick_of_padding(dtype)
    allowed.check(Graph(attend, problem.operands, **problem.options))


@each_kernel
def test_a_row_that_sees_nothing_among_visible_columns(isa, dtype):
    """The tile computes a stretch of the keys alone; its blind rows are uniform over all keys."""
    keys = 150
    problem = make_problem(queries=keys, memory=0, dim=4, mask="uni", batch=1).to(dtype)
    padding = torch.zeros(1, keys, dtype=torch.bool)
    padding[0, :5] = True  # causal and padded on the left: the first rows see nothing
    options = {**problem.options, "mask": AttentionMask(key_padding=padding, causal=True)}
    v = problem.operands["v"]
    out = attend(**problem.operands, **options)
    mean = v.double().mean(1, keepdim=True)
    blind = out[:, :5].double()
    band = torch.finfo(dtype).eps * float(v.abs().max())
    assert float((blind - mean).abs().max()) <= band
    assert float((out[:, 5:6].double() - v[:, 5:6].double()).abs().max()) <= band


@each_kernel
def test_all_rows_absent_give_zeros_even_without_current_keys(isa, dtype):
    checks.check_absent_rows(attend, dtype)
    checks.check_absent_rows(attend, dtype, queries=50, memory=33, dim=20)


@each_kernel
def test_absent_rows_are_zero_and_neither_they_nor_their_gradient_is_read(isa, dtype):
    problem = make_problem(**{**SMALL, "targets": 9, "segments": 2}).to(dtype)
    absent = problem.options["positions"] < 0
    clean = Graph(attend, problem.operands, **problem.options)
    d_out = clean.d_out()
    rows = absent[..., None, None]
    q = problem.operands["q"].masked_fill(rows, torch.nan)
    dirty = Graph(attend, {**problem.operands, "q": q}, **problem.options)
    expected = clean.gradients(d_out)
    actual = dirty.gradients(d_out.masked_fill(rows, torch.inf))
    assert absent.any()
    assert (clean.outs[0][absent] == 0).all()
    assert (expected["q"][absent] == 0).all()
    assert_same(actual, expected, 0.0)
    assert torch.equal(dirty.outs[0], clean.outs[0])


# --- layouts --------------------------------------------------------------------------------------


@each_kernel
@pytest.mark.parametrize("targets", [None, 4])
def test_strides_change_nothing(targets, isa, dtype):
    checks.check_strides(attend, targets, dtype, **SIZES)


@each_kernel
def test_expanded_operands_and_gradients(isa, dtype):
    checks.check_expanded_operands(attend, dtype, **SIZES)


@each_kernel
def test_boolean_and_integer_options_of_any_stride(isa, dtype):
    checks.check_options_of_any_stride(attend, dtype, **SIZES)


@each_kernel
@pytest.mark.parametrize("mask", ["left", "query", "bits", "same_length"])
def test_memory_apart(mask, isa, dtype):
    for targets, memory in itertools.product((None, 4), (0, 1, 70)):
        problem = make_problem(
            mask=mask, targets=targets, memory=memory, segments=2, groups=2, queries=20
        ).to(dtype)
        assert_same(joined(run(attend, apart(problem))), run(attend, problem), 0.0)


# --- dropout --------------------------------------------------------------------------------------


@each_kernel
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("keys", [8, 67])
def test_the_dropout_mask_is_the_definition(groups, keys, isa, dtype):
    out, expected = checks.dropped_and_kept(attend, groups, dtype, keys)
    eps = torch.finfo(dtype).eps
    assert float((out - expected).abs().max()) <= 2 * eps * float(expected.max())


@each_isa
def test_streams_have_dropout_masks_of_their_own(isa):
    operands, options = two_streams("none", "every row", torch.float32)
    operands["q_g"] = operands["q_h"]
    seed = torch.tensor(5)
    content, query = attend_twice(**operands, **options, dropout_p=0.5, seed=seed)
    shared = {name: x for name, x in operands.items() if name not in ("q_h", "q_g")}
    common = {
        "segments_q": options["segments"][:, 17:], "segments_k": options["segments"],
        "memory_length": 17, "scale": options["scale"], "dropout_p": 0.5,
    }  # fmt: skip
    for stream, drawn in ((content, seed), (query, seed + 1)):
        assert torch.equal(attend(operands["q_h"], **shared, **common, seed=drawn), stream)
    assert not torch.equal(content, query)


# --- magnitudes -----------------------------------------------------------------------------------


@each_isa
@pytest.mark.parametrize("size", [1e3, 1e8, 2e9, 1e12, 1e20])
def test_scores_of_any_size(isa, size):
    """Above 2^28 a maximum loses more by rounding than e^x can take. One key has the most."""
    q = torch.zeros(1, 5, 1, 8)
    q[..., 0] = size * torch.tensor([1.0, 1.0001, 1.3, -1.7, 0.77])[:, None]
    k = torch.linspace(-2.1, 1.9, 40).view(1, 40, 1, 1) * torch.ones(8)
    v = torch.arange(40.0).view(1, 40, 1, 1).expand(1, 40, 1, 8).contiguous()
    leaves = [x.requires_grad_() for x in (q, k, v)]
    zeros = torch.zeros(1, 8)
    problem = {"r": torch.zeros(1, 45, 1, 8), "r_w_bias": zeros, "r_r_bias": zeros}
    found = []
    for backend in ("cpu", "reference"):
        out = ops.rel_attention(*leaves, **problem, backend=backend, scale=0.37)
        found.append([out, *torch.autograd.grad(out.sum(), leaves)])
    expected = torch.tensor([39.0, 39.0, 39.0, 0.0, 39.0]).view(1, 5, 1, 1).expand(1, 5, 1, 8)
    torch.testing.assert_close(found[0][0], expected)
    assert all(gradient.isfinite().all() for gradient in found[0])
    for number in (0, 3):  # the output and the gradient of v; those of q and k are rounding
        torch.testing.assert_close(found[0][number], found[1][number])
    scores = torch.einsum("bind,bjnd->bnij", q.detach(), k.detach())
    soft = ops.masked_softmax(scores, memory_length=35, scale=0.37, backend="cpu")
    assert torch.equal(soft.argmax(-1).flatten(), torch.tensor([39, 39, 39, 0, 39]))
    torch.testing.assert_close(soft.max(-1).values, torch.ones(1, 1, 5))
