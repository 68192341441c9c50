"""Pallas kernels of one stream in interpret mode: HF's accuracy, against the float64 reference."""

from __future__ import annotations

import functools
from typing import Any

import pytest

pytest.importorskip("jax", reason="the TPU kernels need JAX: pip install xlnet-fast[tpu]")

import attention_checks as checks
import torch
from hf_oracle import MASKS, WINDOWS, Problem, assert_same, hf_attention, make_problem, run
from tpu_interpreted import TILE, rel_attention
from two_sources import apart, joined
from yardstick import Graph, Yardstick

from xlnet_fast import reference

F32, BF16 = torch.float32, torch.bfloat16
TILES = TILE // 16
SIZES: dict[str, Any] = {"batch": 2, "queries": 37 * TILES, "memory": 19 * TILES, "dim": 8}
"""Three tiles of rows and four of keys, none of them full at the end."""
NO_BITS = [name for name in (*MASKS, *WINDOWS) if name not in ("bits", "bits of all", "all parts")]


def check(problem: Problem, **options: Any) -> None:
    """Output and every gradient, held to the tolerance rule."""
    options = problem.options | options
    attend = functools.partial(rel_attention, tile=options.pop("tile", TILE))
    yardstick = Yardstick(hf_attention, reference.rel_attention, problem.operands, **options)
    yardstick.check(Graph(attend, problem.operands, **options))


def without_bits(problem: Problem) -> Problem:
    """The same problem without packed bits, which these kernels refuse."""
    if problem.options["mask"].bits is not None:
        mask = problem.options["mask"]
        problem.options["mask"] = type(mask)(**{**vars(mask), "bits": None})
    return problem


@pytest.mark.parametrize("mask", NO_BITS)
def test_masks(mask):
    check(without_bits(make_problem(**SIZES, mask=mask, segments=3)).to(F32))


def test_every_part_of_a_mask_together():
    check(without_bits(make_problem(**SIZES, mask="all parts", segments=3)).to(F32))


@pytest.mark.parametrize("mask", ["none", "left", "query", "uni left self", "chunks right"])
def test_rows_at_positions(mask):
    check(make_problem(**SIZES, mask=mask, segments=2, targets=9, groups=2).to(F32))


@pytest.mark.parametrize(("mask", "targets"), [("content", None), ("query", 9), ("none", None)])
def test_half_precision(mask, targets):
    # Twelve heads: r_s_bias has little to compare otherwise, and eager's error is a matter of luck.
    sizes = {**SIZES, "heads": 12}
    check(make_problem(**sizes, mask=mask, segments=2, targets=targets).to(BF16))


@pytest.mark.parametrize(("queries", "memory"), [(1, 40), (17, 47), (33, 15)])
def test_lengths(queries, memory):
    sizes = {**SIZES, "queries": queries, "memory": memory}
    check(make_problem(**sizes, mask="same_length", segments=2).to(F32))


@pytest.mark.parametrize("queries", [1, 16])
def test_rows_that_see_one_key(queries):
    """Their scores have no gradient. HF's is exactly zero, ours what D = dO . out is rounded by."""
    sizes = {**SIZES, "queries": queries, "memory": 0}
    problem = make_problem(**sizes, mask="same_length", segments=2).to(F32)
    assert_same(run(rel_attention, problem), run(reference.rel_attention, problem), 5e-6)


@pytest.mark.parametrize("dim", [1, 64, 65, 128])
def test_head_dims(dim):
    check(make_problem(**{**SIZES, "dim": dim, "queries": 18}, mask="left", segments=2).to(F32))


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("groups", [1, 2])
def test_tables_of_one_head_and_of_groups(start, groups):
    sizes = {**SIZES, "batch": 4, "queries": 21}
    check(make_problem(**sizes, mask="left", start=start, groups=groups, one_table=True).to(F32))


@pytest.mark.slow
def test_tiles_as_they_are_compiled():
    check(make_problem(**{**SIZES, "queries": 130}, mask="query", segments=2).to(F32), tile=128)


def test_fewer_rows_than_current_keys():
    problem = make_problem(**SIZES, mask="right", segments=2).to(F32)
    rows = slice(0, 18)
    problem.operands["q"] = problem.operands["q"][:, rows]
    problem.options["segments_q"] = problem.options["segments_q"][:, rows]
    actual = run(rel_attention, problem)
    positions = torch.arange(18).expand(2, 18)
    expected = run(functools.partial(rel_attention, positions=positions), problem)
    assert_same(actual, expected, 1e-5)
    assert_same(actual, run(reference.rel_attention, problem), 1e-4)


# --- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [2 * TILE, 19])  # whole tiles are read where they are
@pytest.mark.parametrize(("mask", "targets"), [("left", None), ("same_length", 9)])
def test_memory_apart(memory, mask, targets):
    sizes = {**SIZES, "memory": memory}
    problem = make_problem(**sizes, mask=mask, segments=2, targets=targets).to(F32)
    actual = joined(run(rel_attention, apart(problem)))
    assert_same(actual, run(rel_attention, problem), 0.0)


def test_nothing_but_memory():
    problem = make_problem(**{**SIZES, "queries": 5}, mask="left", segments=2).to(F32)
    checks.check_absent_rows(rel_attention, F32, dim=8)
    assert problem.sizes[2] == 24


# --- rows and keys that must not matter ----------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_padding_may_hold_anything(value):
    checks.check_padding_may_hold_anything(rel_attention, value, F32, queries=20)


def test_padding_in_a_memory_apart_may_hold_anything():
    checks.check_padding_in_a_memory_apart(rel_attention, float("nan"), F32, queries=20)


@pytest.mark.parametrize("mask", ["none", "uni"])
@pytest.mark.parametrize("targets", [None, 3])
def test_rows_of_r_beyond_the_table_are_not_read(mask, targets):
    checks.check_rows_of_r_beyond_the_table(rel_attention, mask, targets, F32, queries=20)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_row_that_sees_nothing_is_exactly_uniform(dtype):
    checks.check_uniform_rows(rel_attention, dtype, "nothing visible", keys=32)


def test_a_row_whose_window_is_padding_is_uniform_over_all_keys():
    problem = make_problem(batch=1, queries=37, memory=19, dim=8, mask="window").to(F32)
    mask = problem.options["mask"]
    padding = torch.zeros(1, 56, dtype=torch.bool)
    padding[:, 19 : 19 + 30] = True  # of which the first rows see nothing else
    problem.options["mask"] = type(mask)(**{**vars(mask), "key_padding": padding})
    expected = problem.operands["v"].mean(dim=1)
    out = rel_attention(**problem.operands, **problem.options)
    assert_same({"out": out[:, 10]}, {"out": expected}, 1e-6)
    check(problem)
