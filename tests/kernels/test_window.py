"""Windows, chunks, tables that start later and of one head, by the backends that run on a CPU."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_cases import CASES
from attention_runs import LEFT_OUT, check_left_out, check_passes
from cpu_kernels import REAL, each_isa, each_kernel, isa, needs_kernels
from hf_oracle import F64, WINDOWS, Problem, assert_same, hf_attention, make_problem, run
from torch import Tensor
from two_sources import apart, joined, kernel_operands
from two_stream_cases import CASES as TWO_STREAM_CASES
from two_stream_cases import check_streams
from yardstick import Graph, Yardstick

from xlnet_fast import ops, reference
from xlnet_fast.kernels.cpu import rel_attention as cpu
from xlnet_fast.kernels.sdpa import budget, few_launches
from xlnet_fast.kernels.sdpa import rel_attention as sdpa
from xlnet_fast.kernels.sdpa.common import PackedKeys
from xlnet_fast.masks import AttentionMask

__all__ = ["isa"]  # a fixture
SEED = torch.tensor(-12345)
DROPOUT: dict[str, Any] = {"dropout_p": 0.3, "seed": SEED}
# These backends give NaN that was cleared a gradient, which the formula of the cases does not.
OURS = {
    name: replace(case, nan_in_padding=False)
    for name, case in CASES.items()
    if name.startswith(("window-", "start-"))
}
attend = functools.partial(ops.rel_attention, backend="sdpa")


# --- plain PyTorch: chunks for a CPU, blocks for a GPU -------------------------------------------


@pytest.fixture(params=["chunks", "blocks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either way, with so few rows at once that most keys are beyond their windows."""
    monkeypatch.setattr(few_launches, "suits", lambda x: request.param == "blocks")
    monkeypatch.setattr(sdpa, "CHUNK_ROWS", 4)
    monkeypatch.setattr(budget, "FEWEST_SCORES", 2**6)
    monkeypatch.setattr(few_launches, "LAUNCH_BOUND", 0)
    return str(request.param)


@pytest.mark.parametrize("mask", WINDOWS)
@pytest.mark.parametrize("targets", [None, 7])
@pytest.mark.parametrize(("start", "memory", "groups"), [(0, 0, 2), (1, 6, 1)])
@pytest.mark.usefixtures("way")
def test_sdpa_is_the_reference(mask, targets, start, memory, groups):
    problem = make_problem(
        queries=23, memory=memory, mask=mask, targets=targets, segments=2, start=start,
        one_table=start == 1, groups=groups,
    )  # fmt: skip
    for more in ({}, DROPOUT):
        expected = run(reference.rel_attention, problem, **more)
        assert_same(run(attend, problem, **more), expected, 1e-12)
        together = run(attend, apart(problem), **more)
        assert_same(joined(together), expected, 1e-12)


@pytest.mark.parametrize("name", [name for name in TWO_STREAM_CASES if "window" in name])
@pytest.mark.usefixtures("way")
def test_two_streams_by_sdpa(name):
    check_streams(name, torch.float32, sdpa, "cpu")


@pytest.mark.parametrize("name", LEFT_OUT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sdpa_leaves_out_what_a_window_hides(name, dtype, way):
    if way == "blocks" and LEFT_OUT[name].mask:
        pytest.skip("whether padding leaves a row a key, a GPU would have to be waited for")
    check_left_out(name, dtype, sdpa, "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["window-chunks-speech", "window-self", "start-groups"])
@pytest.mark.usefixtures("way")
def test_accuracy_of_sdpa_is_that_of_eager(name, dtype):
    check_passes(name, dtype, sdpa, "cpu", OURS[name])


def test_one_table_for_all_heads_is_packed_once():
    keys, _ = kernel_operands(make_problem(heads=3))
    for r, heads in ((keys.r, 3), (keys.r[:, :, :1].expand(-1, -1, 3, -1), 1)):
        packed = PackedKeys(replace(keys, r=r), None).r
        assert packed.shape[1] == 3
        assert packed.untyped_storage().nbytes() == heads * packed[:, 0].numel() * 8


def test_absent_rows_without_current_keys(way):
    problem = make_problem(queries=3, memory=5, start=1)
    options = {**problem.options, "positions": torch.full((4, 3), -1), "memory_length": 8}
    options["mask"] = AttentionMask(window=(2, 2))
    result = run(attend, replace(problem, options=options))
    assert all((value == 0).all() for value in result.values()), way


# --- the CPU kernels ------------------------------------------------------------------------------

# 65 rows are a tile of 48 and one of 17; 300 keys some panels.
TILES: dict[str, Any] = {"batch": 2, "queries": 65, "memory": 17, "heads": 12, "dim": 8}
LONG: dict[str, Any] = {"batch": 2, "queries": 190, "memory": 10, "heads": 4, "dim": 4}
PROBLEMS: dict[str, dict[str, Any]] = {
    **{mask: {**TILES, "mask": mask, "segments": 2} for mask in WINDOWS},
    **{
        f"{mask}, later": {**LONG, "mask": mask, "start": 1, "one_table": True}
        for mask in ("window right", "window to the left", "chunks uni")
    },
    "targets": {**TILES, "mask": "chunks right", "start": 1, "targets": 17, "groups": 2},
    "targets, one table": {**TILES, "mask": "window right", "one_table": True, "targets": 17},
}


@functools.cache
def yardstick(name: str, dtype: torch.dtype) -> tuple[Problem, Yardstick]:
    problem = make_problem(**PROBLEMS[name]).to(dtype)
    # One table's gradient is the sum of all heads', which eager adds up in one product.
    eager = hf_attention if not PROBLEMS[name].get("one_table") else reference.rel_attention
    return problem, Yardstick(eager, reference.rel_attention, problem.operands, **problem.options)


@needs_kernels
@each_kernel
@pytest.mark.parametrize("name", PROBLEMS)
def test_accuracy_of_the_cpu_kernels_is_that_of_eager(name, isa, dtype):
    problem, allowed = yardstick(name, dtype)
    attention = functools.partial(ops.rel_attention, backend="cpu")
    allowed.check(Graph(attention, problem.operands, **problem.options))


@needs_kernels
@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cases_of_all_backends(name, dtype):
    check_passes(name, dtype, cpu, "cpu", OURS[name])


@needs_kernels
@each_isa
@pytest.mark.parametrize("name", [name for name, case in LEFT_OUT.items() if not case.mask])
def test_the_cpu_kernels_leave_out_what_a_window_hides(name, isa):
    """A tile at the edge of padding, where some rows see a key, reads all keys for the others."""
    check_left_out(name, torch.bfloat16 if isa not in REAL[:3] else torch.float32, cpu, "cpu")


@needs_kernels
@each_isa
@pytest.mark.parametrize("dropout", [{}, DROPOUT])
def test_rows_within_the_padding_are_uniform(dropout, isa):
    """Tiles that see nothing, without any product, and those of which some rows see."""
    padding = torch.zeros(1, 290, dtype=torch.bool)
    padding[:, 100:] = True
    problem = make_problem(batch=1, queries=290, memory=0, heads=4, dim=4).to(torch.float32)
    options = {**problem.options, "mask": AttentionMask(key_padding=padding, window=(20, 5))}
    problem = replace(problem, options=options)
    attention = functools.partial(ops.rel_attention, backend="cpu")
    actual = run(attention, problem, **dropout)
    wide = replace(problem, operands={name: x.double() for name, x in problem.operands.items()})
    exact = run(reference.rel_attention, wide, **dropout)
    for name, value in actual.items():
        torch.testing.assert_close(value.double(), exact[name], atol=2e-5, rtol=2e-5, msg=name)
    if not dropout:
        mean = problem.operands["v"].mean(1)
        for row in (120, 150, 289):
            torch.testing.assert_close(actual["out"][:, row], mean)


@needs_kernels
def test_any_number_of_threads_gives_the_same_bits():
    problem = make_problem(**{**LONG, "mask": "chunks right", "start": 1}).to(torch.float32)
    attention = functools.partial(ops.rel_attention, backend="cpu")
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(run(attention, problem, **DROPOUT))
    finally:
        torch.set_num_threads(before)
    assert_same(results[0], results[1], 0.0)


# --- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("reference", F64), ("sdpa", F64), pytest.param("cpu", torch.float32, marks=needs_kernels)],
)
def test_shaw_keys_are_one_table_without_biases(backend, dtype):
    """Source: HF ``Wav2Vec2BertSelfAttention``, ``position_embeddings_type="relative_key"``."""
    length, heads, dim, left, right = 11, 2, 4, 5, 3
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, length, heads, dim, generator=generator).to(dtype) for _ in range(3))
    embedding = torch.randn(left + right + 1, dim, generator=generator).to(dtype)
    distance = torch.arange(length) - torch.arange(length)[:, None]  # j - i
    of_pairs = embedding[distance.clamp(-left, right) + left]  # (I, J, D)
    scores = torch.einsum("bind,bjnd->bnij", q, k) + torch.einsum("bind,ijd->bnij", q, of_pairs)
    expected = torch.einsum("bnij,bjnd->bind", (scores * dim**-0.5).softmax(-1), v)
    rows = torch.arange(1 - length, length)  # j - i of row p = 1 on
    r = embedding[rows.clamp(-left, right) + left][None, :, None]  # (1, 2 T - 1, 1, D)
    zeros = torch.zeros(heads, dim, dtype=dtype)
    out: Tensor = ops.rel_attention(q, k, v, r, zeros, zeros, r_start=1, backend=backend)
    torch.testing.assert_close(out, expected)
