"""What backend ``sdpa`` does on a GPU, run on the CPU: the same checks as its way for a CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import attention_checks as checks
import pytest
import torch
from hf_oracle import F64, MASKS, Problem, assert_same, hf_attention, make_problem, run
from two_sources import apart, joined, kernel_operands
from two_stream_cases import CASES as TWO_STREAM_CASES
from two_stream_cases import check_streams

from xlnet_fast import ops, reference
from xlnet_fast.kernels.sdpa import budget, few_launches
from xlnet_fast.kernels.sdpa import masked_softmax as sdpa_softmax
from xlnet_fast.kernels.sdpa import rel_attention as sdpa
from xlnet_fast.kernels.sdpa.blocks import Block
from xlnet_fast.masks import AttentionMask
from xlnet_fast.tolerance import assert_within

attend = functools.partial(ops.rel_attention, backend="sdpa")

BLOCKS = {  # scores of a block, launches bind up to; one row of one element of a problem has 16
    "one row": (16, 0),
    "two rows": (40, 0),
    "two elements": (170, 0),
    "whole": (2**20, 0),
    "whole, at once": (2**20, 2**20),
}


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_launches, "suits", lambda x: True)


@pytest.fixture
def set_blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def apply(name: str) -> None:
        scores, at_once = BLOCKS[name]
        monkeypatch.setattr(budget, "scores", lambda device, size: scores)
        monkeypatch.setattr(few_launches, "LAUNCH_BOUND", at_once)

    return apply


def blocks_of(problem: Problem) -> list[Block]:
    keys, queries = kernel_operands(problem)
    shared = few_launches.Shared(keys, queries.mask.key_padding)
    return list(few_launches.Stream(keys, shared, queries).blocks(1))


# --- against the reference and Hugging Face -------------------------------------------------------


@pytest.mark.parametrize("blocks", ["two rows", "two elements", "whole"])
@pytest.mark.parametrize("mask", MASKS)
def test_masks(blocks, mask, set_blocks):
    set_blocks(blocks)
    for segments in (0, 3):
        problem = make_problem(mask=mask, segments=segments)
        assert_same(run(attend, problem), run(reference.rel_attention, problem), 1e-12)


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("targets", [None, 4])
def test_groups_and_positions(blocks, groups, targets, set_blocks):
    set_blocks(blocks)
    for mask in ("left", "uni right"):
        problem = make_problem(
            mask=mask, groups=groups, queries=6, memory=2, targets=targets, segments=2
        )
        assert_same(run(attend, problem), run(reference.rel_attention, problem), 1e-12)


@pytest.mark.parametrize("blocks", ["one row", "whole", "whole, at once"])
@pytest.mark.parametrize(("queries", "memory"), [(1, 0), (1, 7), (7, 0), (3, 20), (17, 1), (8, 8)])
def test_lengths(blocks, queries, memory, set_blocks):
    set_blocks(blocks)
    for mask in ("none", "same_length", "content"):
        problem = make_problem(queries=queries, memory=memory, mask=mask, segments=2)
        assert_same(run(attend, problem), run(reference.rel_attention, problem), 1e-12)


@pytest.mark.parametrize("mask", ["left", "bits", "same_length"])
@pytest.mark.parametrize("targets", [None, 4])
def test_memory_apart(mask, targets, set_blocks):
    set_blocks("two elements")
    for memory in (0, 1, 9):
        problem = make_problem(mask=mask, targets=targets, memory=memory, segments=2, groups=2)
        actual = joined(run(attend, apart(problem)))
        assert_same(actual, run(reference.rel_attention, problem), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", TWO_STREAM_CASES)
def test_two_streams(name, dtype):
    check_streams(name, dtype, sdpa, "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", ["content", "uni right"])
@pytest.mark.parametrize("targets", [None, 17])
def test_accuracy_is_that_of_eager(dtype, mask, targets, monkeypatch):
    monkeypatch.setattr(budget, "scores", lambda device, size: 16 * 82 * 12 * 2)
    problem = make_problem(
        batch=4, queries=65, memory=17, heads=12, dim=8, mask=mask, segments=2, targets=targets
    ).to(dtype)
    actual, eager = run(attend, problem), run(hf_attention, problem)
    exact = run(reference.rel_attention, problem.to(F64))
    for name, value in actual.items():
        assert value.dtype == dtype
        assert_within(value, eager[name], exact[name], name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_over_many_blocks_are_kept_in_fp32(dtype, monkeypatch):
    """1000 blocks of one row give each value 1/1000: a sum in half precision stalls on the way."""
    monkeypatch.setattr(budget, "scores", lambda device, size: 1)
    problem = make_problem(batch=1, queries=1000, memory=0, heads=1, dim=1).to(dtype)
    operands = {name: torch.zeros_like(x) for name, x in problem.operands.items()}
    v = operands["v"].requires_grad_()
    out = attend(**operands, **problem.options)
    out.backward(torch.ones_like(out))
    torch.testing.assert_close(v.grad, torch.ones_like(v), atol=torch.finfo(dtype).eps, rtol=0)


# --- blocks ---------------------------------------------------------------------------------------


def test_the_blocks_of_these_tests_divide_every_direction(set_blocks):
    for name, elements, rows in [
        ("one row", 1, 1),
        ("two rows", 1, 2),
        ("two elements", 2, 5),
        ("whole", 4, 5),
    ]:
        set_blocks(name)
        blocks = blocks_of(make_problem())
        assert max(block.b1 - block.b0 for block in blocks) == elements
        assert max(block.i1 - block.i0 for block in blocks) == rows
        covered = torch.zeros(4, 5)
        for block in blocks:
            covered[block.index] += 1
        assert (covered == 1).all()
    assert {block.group for block in blocks_of(make_problem(groups=2))} == {0, 1}


def test_position_scores_are_made_in_parts_of_aligned_width(monkeypatch):
    keys, queries = kernel_operands(make_problem(queries=64, memory=0))
    stream = few_launches.Stream(keys, few_launches.Shared(keys, None), queries)
    (block,) = stream.blocks(1)
    assert [(part.width, part.start) for part in stream.parts(block)] == [(128, 0)]
    monkeypatch.setattr(few_launches, "LAUNCH_BOUND", 0)
    assert [(part.width, part.start) for part in stream.parts(block)] == [(96, 32), (96, 0)]


def test_no_tensor_beyond_a_block_exists(monkeypatch):
    scores = 2**15
    monkeypatch.setattr(budget, "scores", lambda device, size: scores)
    monkeypatch.setattr(few_launches, "LAUNCH_BOUND", 0)
    for mask, targets in (("content", None), ("bits", None), ("left", 96)):
        problem = make_problem(
            batch=2, queries=256, memory=256, dim=2, mask=mask, segments=2, targets=targets
        ).to(torch.float32)
        largest, queries = checks.both_passes(sdpa, problem)
        # Half of the rows at arbitrary positions meet the whole table of L + J rows.
        operand = max(
            t.numel() for t in (*problem.operands.values(), queries.mask.bits) if t is not None
        )
        assert largest.nbytes <= 4 * max(scores, operand), largest.maker
    assert 4 * max(scores, operand) < 4 * 2 * 2 * 96 * 512 / 2  # what it must be less than


# --- rows and keys that must not matter, strides, dropout, single gradients -----------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_padding_may_hold_anything(value):
    checks.check_padding_may_hold_anything(attend, value)
    checks.check_padding_in_a_memory_apart(attend, value)


@pytest.mark.parametrize("mask", ["none", "uni"])
@pytest.mark.parametrize("targets", [None, 3])
def test_rows_of_r_beyond_the_table_are_not_read(mask, targets):
    checks.check_rows_of_r_beyond_the_table(attend, mask, targets, tolerance=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, F64])
@pytest.mark.parametrize("mask", ["nothing visible", "bits"])
def test_a_row_that_sees_nothing_is_exactly_uniform(dtype, mask):
    checks.check_uniform_rows(attend, dtype, mask)


def test_all_rows_absent_give_zeros_even_without_current_keys():
    checks.check_absent_rows(attend)


@pytest.mark.parametrize("targets", [None, 4])
def test_strides_change_nothing(targets):
    """But for rounding: a GEMM may take another way through another layout."""
    problem = apart(make_problem(mask="left", segments=2, targets=targets, groups=2))
    expected = run(attend, problem)
    layouts = (checks.heads_first, checks.every_second, checks.offset)
    for layout in (*layouts, lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)):
        leaves = {
            name: (layout(x) if x.dim() == 4 else checks.every_second(x)).detach().requires_grad_()
            for name, x in problem.operands.items()
        }
        out = attend(**leaves, **problem.options)
        out.backward(checks.heads_first(problem.grad_out()))
        grads = {f"d {name}": leaf.grad for name, leaf in leaves.items()}
        assert_same({"out": out.detach()} | grads, expected, 1e-13)
    q = checks.heads_first(problem.operands["q"])
    assert attend(**{**problem.operands, "q": q}, **problem.options).stride() == q.stride()


def test_expanded_operands_and_gradients():
    checks.check_expanded_operands(attend)
    checks.check_options_of_any_stride(attend)


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("groups", [1, 4])
def test_the_dropout_mask_is_the_definition_in_any_block(blocks, groups, set_blocks):
    set_blocks(blocks)
    out, expected = checks.dropped_and_kept(attend, groups)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("blocks", ["two rows", "whole"])
@pytest.mark.parametrize("targets", [None, 4])
def test_dropout_gradients(blocks, targets, set_blocks):
    set_blocks(blocks)
    problem = make_problem(mask="left", segments=2, targets=targets)
    dropout = {"dropout_p": 0.4, "seed": torch.tensor([9])}
    expected = run(reference.rel_attention, problem, **dropout)
    assert_same(run(attend, problem, **dropout), expected, 1e-12)


@pytest.mark.parametrize("name", checks.GRADIENTS)
def test_one_gradient_alone_is_the_same(name):
    checks.check_one_gradient_alone(attend, sdpa, name)


# --- memory allowed -------------------------------------------------------------------------------

GIB = 2**30


@pytest.fixture
def gpu_memory(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU of 64 GiB of which ``free`` bytes are free, and whether a graph is being captured."""
    state = SimpleNamespace(free=60 * GIB, capturing=False, asked=0)

    def mem_get_info(index: int) -> tuple[int, int]:
        state.asked += 1
        assert not state.capturing
        return state.free, 64 * GIB

    properties = SimpleNamespace(total_memory=64 * GIB)
    for name, value in {
        "is_available": lambda: True,
        "get_device_properties": lambda index: properties,
        "is_current_stream_capturing": lambda: state.capturing,
        "mem_get_info": mem_get_info,
        "memory_reserved": lambda index: 3 * GIB,
        "memory_allocated": lambda index: 2 * GIB,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(budget, "_decided", {})
    return state


CUDA = torch.device("cuda", 0)


def test_a_block_takes_its_share_of_a_gpu(gpu_memory):
    assert budget.scores(CUDA, 16) == 8 * GIB // 16
    gpu_memory.free = 0  # asked once
    assert budget.scores(CUDA, 16) == 8 * GIB // 16
    assert budget.scores(CUDA, 2) == budget.MOST_SCORES
    assert gpu_memory.asked == 1


def test_a_block_takes_half_of_what_is_free_where_that_is_little(gpu_memory):
    gpu_memory.free = 3 * GIB
    assert budget.scores(CUDA, 16) == 2 * GIB // 16  # with 1 GiB that the allocator has to spare
    gpu_memory.free = 0
    budget._decided.clear()
    assert budget.scores(CUDA, 1000) == budget.FEWEST_SCORES


def test_what_is_free_is_not_asked_in_a_capture_nor_for_the_same_bits(gpu_memory, monkeypatch):
    gpu_memory.free, gpu_memory.capturing = 0, True
    assert budget.scores(CUDA, 16) == 8 * GIB // 16
    gpu_memory.capturing = False
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert budget.scores(CUDA, 16) == 8 * GIB // 16
    assert gpu_memory.asked == 0


def test_masked_softmax_takes_many_batch_elements_at_a_time(monkeypatch: Any):
    scores = torch.empty(7, 2, 3, 5, device="meta")
    inputs = SimpleNamespace(scores=scores)
    monkeypatch.setattr(budget, "scores", lambda device, size: 3 * 30 + 1)
    assert [(s.start, s.stop) for s in sdpa_softmax._chunks(inputs, 3)] == [(0, 3), (3, 6), (6, 7)]
    monkeypatch.setattr(budget, "scores", lambda device, size: 1)
    assert len(list(sdpa_softmax._chunks(inputs, 3))) == 7


# --- on a GPU -------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_a_gpu_waits_for_nothing_and_captures_a_graph():
    problem = make_problem(queries=65, memory=17, mask="left", segments=2).to(torch.float16)
    operands = {name: x.cuda() for name, x in problem.operands.items()}
    options = {
        name: x.cuda() if isinstance(x, torch.Tensor) else x for name, x in problem.options.items()
    }
    padding = problem.options["mask"].key_padding.cuda()
    options["mask"] = AttentionMask(key_padding=padding, see_self=True)
    options |= {"dropout_p": 0.1, "seed": torch.tensor([3], device="cuda")}
    expected = attend(**operands, **options)  # also compares dropout's kernel, which waits once
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = attend(**operands, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(again, expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend(**operands, **options)
    out.zero_()
    graph.replay()
    assert torch.equal(out, expected)
