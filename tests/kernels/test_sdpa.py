"""Backend ``sdpa``: the reference's numbers in float64, eager's accuracy below, bounded memory."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import attention_checks as checks
import pytest
import torch
from hf_oracle import F64, MASKS, WINDOWS, Problem, assert_same, hf_attention, make_problem, run
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from two_sources import apart, joined, kernel_operands

from xlnet_fast import ops, reference
from xlnet_fast.kernels.sdpa import masked_softmax as sdpa_softmax
from xlnet_fast.kernels.sdpa import rel_attention as sdpa
from xlnet_fast.kernels.sdpa.common import PackedKeys
from xlnet_fast.masks import AttentionMask
from xlnet_fast.operands import SoftmaxInputs
from xlnet_fast.tolerance import assert_within

attend = functools.partial(ops.rel_attention, backend="sdpa")

CHUNKS = {  # CHUNK_ELEMENTS, CHUNK_ROWS; scores of one row of one element of a problem: 16
    "one row": (20, 2),
    "two rows of two elements": (70, 2),
    "three rows of all": (200, 3),
    "whole": (sdpa.CHUNK_ELEMENTS, sdpa.CHUNK_ROWS),
}


@pytest.fixture
def set_chunks(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def apply(name: str) -> None:
        elements, rows = CHUNKS[name]
        monkeypatch.setattr(sdpa, "CHUNK_ELEMENTS", elements)
        monkeypatch.setattr(sdpa, "CHUNK_ROWS", rows)

    return apply


def chunks_of(problem: Problem) -> list[Any]:
    keys, queries = kernel_operands(problem)
    attention = sdpa._Attention(keys, PackedKeys(keys, queries.mask.key_padding), queries)
    return list(attention.chunks())


# --- against the reference -----------------------------------------------------------------------


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("segments", [0, 3])
def test_masks_and_segments(chunks, mask, segments, set_chunks):
    set_chunks(chunks)
    problem = make_problem(mask=mask, segments=segments)
    assert_same(run(attend, problem), run(reference.rel_attention, problem), 1e-12)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("targets", [None, 4])
@pytest.mark.parametrize("mask", ["left", "uni right"])
def test_groups_and_positions(chunks, groups, targets, mask, set_chunks):
    set_chunks(chunks)
    problem = make_problem(
        mask=mask, groups=groups, queries=6, memory=2, targets=targets, segments=2
    )
    assert_same(run(attend, problem), run(reference.rel_attention, problem), 1e-12)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize(("queries", "memory"), [(1, 0), (1, 7), (7, 0), (3, 20), (17, 1)])
def test_lengths(chunks, queries, memory, set_chunks):
    set_chunks(chunks)
    for mask in ("none", "same_length"):
        problem = make_problem(queries=queries, memory=memory, mask=mask, segments=2)
        assert_same(run(attend, problem), run(reference.rel_attention, problem), 1e-12)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("mask", ["left", "query", "bits", "same_length"])
def test_memory_apart(chunks, mask, set_chunks):
    set_chunks(chunks)
    for targets, memory in itertools.product((None, 4), (0, 1, 9)):
        problem = make_problem(mask=mask, targets=targets, memory=memory, segments=2, groups=2)
        actual = joined(run(attend, apart(problem)))
        assert_same(actual, run(reference.rel_attention, problem), 1e-12)
        assert_same(actual, run(attend, problem), 0.0)


def test_the_chunks_of_these_tests_divide_every_direction(set_chunks):
    for name, elements, rows in [
        ("one row", 1, 1),
        ("two rows of two elements", 2, 2),
        ("three rows of all", 4, 3),
        ("whole", 4, 5),
    ]:
        set_chunks(name)
        problem = make_problem()
        chunks = chunks_of(problem)
        assert max(chunk.b1 - chunk.b0 for chunk in chunks) == elements
        assert max(chunk.i1 - chunk.i0 for chunk in chunks) == rows
        covered = torch.zeros(4, 5)
        for chunk in chunks:
            covered[chunk.b0 : chunk.b1, chunk.i0 : chunk.i1] += 1
        assert (covered == 1).all()
        groups = {chunk.group for chunk in chunks_of(make_problem(groups=2))}
        assert groups == {0, 1}


@pytest.mark.parametrize(
    ("dtype", "targets"),
    [(torch.float32, 17), (torch.float32, None), (torch.bfloat16, 17), (torch.float16, None)],
)
@pytest.mark.parametrize("mask", ["left", "content", "query", "bits", "uni right"])
def test_accuracy_is_that_of_eager(dtype, mask, targets, monkeypatch):
    monkeypatch.setattr(sdpa, "CHUNK_ROWS", 16)
    monkeypatch.setattr(sdpa, "CHUNK_ELEMENTS", 16 * 50 * 12 * 2)
    # Twelve heads: the gradient of r_s_bias has one number per head, and of two numbers eager's
    # error is a matter of luck.
    problem = make_problem(
        batch=3, queries=33, memory=17, heads=12, dim=8, mask=mask, segments=2, targets=targets
    ).to(dtype)
    actual, eager = run(attend, problem), run(hf_attention, problem)
    exact = run(reference.rel_attention, wide(problem))
    for name, value in actual.items():
        assert value.dtype == dtype
        assert_within(value, eager[name], exact[name], name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_over_many_chunks_are_kept_in_fp32(dtype, monkeypatch):
    """1000 chunks of one row give each value 1/1000: a sum in half precision stalls on the way."""
    monkeypatch.setattr(sdpa, "CHUNK_ROWS", 1)
    monkeypatch.setattr(sdpa, "CHUNK_ELEMENTS", 1)
    problem = make_problem(batch=1, queries=1000, memory=0, heads=1, dim=1).to(dtype)
    operands = {name: torch.zeros_like(x) for name, x in problem.operands.items()}
    v = operands["v"].requires_grad_()
    out = attend(**operands, **problem.options)
    out.backward(torch.ones_like(out))
    torch.testing.assert_close(v.grad, torch.ones_like(v), atol=torch.finfo(dtype).eps, rtol=0)


def wide(problem: Problem) -> Problem:
    """The same numbers in float64."""
    return problem.to(F64)


# --- rows and keys that must not matter ----------------------------------------------------------


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_padding_may_hold_anything(chunks, value, set_chunks):
    set_chunks(chunks)
    checks.check_padding_may_hold_anything(attend, value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_padding_in_a_memory_apart_may_hold_anything(value):
    checks.check_padding_in_a_memory_apart(attend, value)


@pytest.mark.parametrize("mask", ["none", "uni"])
@pytest.mark.parametrize("targets", [None, 3])
def test_rows_of_r_beyond_the_table_are_not_read(mask, targets):
    checks.check_rows_of_r_beyond_the_table(attend, mask, targets, tolerance=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, F64])
@pytest.mark.parametrize("chunks", ["one row", "whole"])
@pytest.mark.parametrize("mask", ["nothing visible", "bits"])
def test_a_row_that_sees_nothing_is_exactly_uniform(dtype, chunks, mask, set_chunks):
    set_chunks(chunks)
    checks.check_uniform_rows(attend, dtype, mask)


def test_all_rows_absent_give_zeros_even_without_current_keys():
    checks.check_absent_rows(attend)


# --- strides -------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [None, 4])
def test_strides_change_nothing(targets):
    checks.check_strides(attend, targets)


def test_expanded_operands_and_gradients():
    checks.check_expanded_operands(attend)


def test_boolean_and_integer_options_of_any_stride():
    checks.check_options_of_any_stride(attend)


# --- dropout -------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize("groups", [1, 4])
def test_the_dropout_mask_is_the_definition_in_any_chunk(chunks, backend, groups, set_chunks):
    set_chunks(chunks)
    call = functools.partial(ops.rel_attention, backend=backend)
    out, expected = checks.dropped_and_kept(call, groups)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("targets", [None, 4])
def test_dropout_gradients(chunks, targets, set_chunks):
    set_chunks(chunks)
    problem = make_problem(mask="left", segments=2, targets=targets)
    dropout = {"dropout_p": 0.4, "seed": torch.tensor([9])}
    expected = run(reference.rel_attention, problem, **dropout)
    assert_same(run(attend, problem, **dropout), expected, 1e-12)


# --- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["content", "uni", "bits", "left"])
@pytest.mark.parametrize("targets", [None, 48])
def test_no_tensor_beyond_a_chunk_exists(mask, targets, monkeypatch):
    chunk_elements = 2**12
    monkeypatch.setattr(sdpa, "CHUNK_ELEMENTS", chunk_elements)
    problem = make_problem(
        batch=2, queries=192, memory=64, dim=2, mask=mask, segments=2, targets=targets
    ).to(torch.float32)
    largest, queries = checks.both_passes(sdpa, problem)
    # The rows of a chunk at arbitrary positions meet the whole table of L + J rows.
    table = chunk_elements * (1 + (192 if targets else 64) / 256)
    operand = max(
        t.numel() for t in (*problem.operands.values(), queries.mask.bits) if t is not None
    )
    assert largest.nbytes <= 4 * max(table, operand), largest.maker
    rows = problem.sizes[1]
    assert 4 * max(table, operand) < 4 * 2 * 2 * rows * 256 / 4  # what it must be less than


# --- only what is asked for -----------------------------------------------------------------------


@pytest.mark.parametrize("name", checks.GRADIENTS)
def test_one_gradient_alone_is_the_same(name):
    checks.check_one_gradient_alone(attend, sdpa, name)


@pytest.mark.parametrize(
    ("left_out", "fewer"), [({"v", "v_memory"}, 1), ({"k", "k_memory"}, 1), ({"r"}, 1), ({"v"}, 0)]
)
def test_products_of_unwanted_gradients_are_left_out(left_out, fewer, monkeypatch):
    problem = apart(make_problem(segments=2))  # one chunk
    counted = []
    everything = set(checks.GRADIENTS)
    for wanted in (everything, everything - left_out):
        with CountProducts() as products:
            checks.gradients(sdpa, problem, wanted)
        counted.append(products.number)
    assert counted[0] - counted[1] == fewer


class CountProducts(TorchDispatchMode):
    """Counts batched matrix products."""

    number = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.number += "bmm" in str(func)
        return func(*args, **(kwargs or {}))


# --- masked_softmax, concat_memory ---------------------------------------------------------------


def softmax_problem(
    mask: str, targets: int | None = None, dtype: torch.dtype = F64
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Operands and options of ``ops.masked_softmax`` from those of a rel_attention problem."""
    problem = make_problem(mask=mask, segments=3, targets=targets)
    batch, rows, keys, _ = problem.sizes
    operands = {
        "scores": torch.randn(batch, 2, rows, keys, dtype=F64),
        "position_scores": torch.randn(batch, 2, rows, problem.operands["r"].shape[1], dtype=F64),
        "segment_scores": torch.randn(batch, 2, rows, dtype=F64),
    }
    return {name: x.to(dtype) for name, x in operands.items()}, problem.options


def run_softmax(
    backend: str, operands: dict[str, Tensor], options: dict[str, Any], **more: Any
) -> dict[str, Tensor]:
    leaves = {name: x.detach().requires_grad_() for name, x in operands.items()}
    out = ops.masked_softmax(**leaves, **options, backend=backend, **more)
    weight = torch.linspace(-1, 1, out.numel(), dtype=F64).cos().view(out.shape)
    out.backward(weight.to(out.dtype))
    return {"out": out.detach()} | {f"d {name}": leaf.grad for name, leaf in leaves.items()}


@pytest.mark.parametrize("mask", [*MASKS, *WINDOWS])
@pytest.mark.parametrize("targets", [None, 4])
@pytest.mark.parametrize("dropout", [{}, {"dropout_p": 0.3, "seed": torch.tensor(4)}])
def test_masked_softmax_is_the_reference(mask, targets, dropout):
    operands, options = softmax_problem(mask, targets)
    actual = run_softmax("sdpa", operands, options, **dropout)
    expected = run_softmax("reference", operands, options, **dropout)
    assert_same(actual, expected, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dropout", [{}, {"dropout_p": 0.3, "seed": torch.tensor(4)}])
def test_masked_softmax_is_as_accurate_as_the_reference(dtype, dropout):
    operands, options = softmax_problem("left", dtype=dtype)
    actual = run_softmax("sdpa", operands, options, **dropout)
    eager = run_softmax("reference", operands, options, **dropout)
    wide_operands = {name: x.to(F64) for name, x in operands.items()}
    exact = run_softmax("reference", wide_operands, options, **dropout)
    for name, value in actual.items():
        assert_within(value, eager[name], exact[name], name)


def test_masked_softmax_holds_one_batch_element_in_fp32():
    batch, heads, queries, keys = 8, 2, 64, 64
    scores = torch.randn(batch, heads, queries, keys).bfloat16()
    out = torch.zeros_like(scores)
    empty, mask = (None,) * 4, AttentionMask(causal=True)
    inputs = SoftmaxInputs(scores, *empty, mask, None, 0, 1.0)
    with checks.LargestTensor() as largest:
        sdpa_softmax.masked_softmax_forward(inputs, out)
    # ``out`` itself is the largest: bf16 of the whole batch, against fp32 of one element.
    assert largest.nbytes <= 2 * out.numel()


@pytest.mark.parametrize("memory_length", [None, 0, 1, 5])
def test_concat_memory_is_the_reference(memory_length):
    hidden = torch.randn(4, 2, 3)
    memory = None if memory_length is None else torch.randn(memory_length, 2, 3)
    for mem_len, reuse_len in itertools.product((None, 0, 1, 4, 6, 9, 50), (None, 0, 1, 3, 50)):
        actual = ops.concat_memory(hidden, memory, mem_len, reuse_len, backend="sdpa")
        expected = reference.concat_memory(hidden, memory, mem_len, reuse_len)
        assert torch.equal(actual, expected), (mem_len, reuse_len)
        assert actual.untyped_storage().nbytes() == 4 * actual.numel()
