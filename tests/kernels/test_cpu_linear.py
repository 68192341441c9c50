"""The C++ kernels of linear layers: every instruction set, every size that takes another path."""

from __future__ import annotations

import pytest
import torch
from cpu_kernels import ISAS, each_isa, isa, needs_kernels
from torch.nn import functional as F

from xlnet_fast import _extension
from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.kernels.cpu import linear as cpu_linear
from xlnet_fast.kernels.cpu.addresses import DTYPES
from xlnet_fast.tolerance import assert_within

__all__ = ["isa"]  # a fixture
pytestmark = needs_kernels
SENTINEL = 77.0
# Below and above 97 rows other ways are taken, below by the order of the weight too: there each
# number of rows up to 8 has a tile, more are groups of such, and blocks of 48 rows. 64, 16 or 8
# columns are a panel, 48 a block; 768 words are multiplied at once and 192 of them summed at once.
ROWS = (*range(1, 10), 13, 48, 49, 97, 102)
TERMS = (2, 14, 32, 66, 386, 1602)
COLUMNS = (7, 17, 64, 70, 130)
OTHER = ("rows", "columns")


def random(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def in_order(x, order):
    """Equal to ``x``, with its rows or its columns one after another in memory."""
    return x.contiguous() if order == "rows" else x.t().contiguous().t()


def guarded(rows, columns, dtype):
    """(a buffer full of a number, a contiguous matrix of NaN within it)."""
    whole = torch.full((rows * columns + 128,), SENTINEL, dtype=dtype)
    return whole, whole[64:-64].view(rows, columns).fill_(torch.nan)


def eager(x, weight, bias=None, residual=None, gelu=False):
    out = F.linear(x, weight, bias)
    out = F.gelu(out) if gelu else out
    return out if residual is None else out + residual


def product(x, weight, bias=None, residual=None, gelu=False):
    whole, out = guarded(x.shape[0], weight.shape[0], x.dtype)
    cpu_linear.linear(x, weight, bias, residual, gelu, out)
    result = out.clone()
    out.fill_(SENTINEL)
    assert bool((whole == SENTINEL).all()), "the kernel wrote outside of its result"
    return result


def check(x, weight, bias=None, residual=None, gelu=False):
    double = [None if t is None else t.double() for t in (x, weight, bias, residual)]
    actual = product(x, weight, bias, residual, gelu)
    assert_within(actual, eager(x, weight, bias, residual, gelu), eager(*double, gelu=gelu))


def dtypes_of_this_set():
    return [d for d in (torch.float32, torch.bfloat16) if cpu_linear.takes(d, terms=2)]


@each_isa
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("order", OTHER)
def test_product(isa, rows, order):
    few = rows in (2, 3, 6, 7, 9, 13)  # much the same code as others
    for dtype in dtypes_of_this_set():
        for terms in (2, 66, 1602) if few else TERMS:
            for columns in (17, 130) if few else COLUMNS:
                x = random(rows, terms, dtype=dtype)
                # Of such a size that no result lies where float64's GELU cancels to zero.
                weight = random(columns, terms, seed=1).div(terms**0.5).to(dtype)
                weight = in_order(weight, order)
                bias = random(columns, dtype=dtype, seed=2)
                residual = random(rows, columns, dtype=dtype, seed=3)
                check(x, weight)
                check(x, weight, bias, gelu=True)
                check(x, weight, bias, residual)


@each_isa
def test_sums_over_the_rows_of_both(isa):
    """As in the gradient of a weight: the terms of both operands lie far apart."""
    for terms, rows, columns in ((1, 5, 3), (70, 5, 17), (70, 61, 70), (1700, 101, 70)):
        check(in_order(random(rows, terms), "columns"), in_order(random(columns, terms), "columns"))


@each_isa
def test_one_column(isa):
    for dtype in dtypes_of_this_set():
        for rows in (48, 100):
            check(random(rows, 34, dtype=dtype), random(1, 34, dtype=dtype, seed=1), gelu=True)


@each_isa
def test_a_residual_in_wider_rows(isa):
    for dtype in dtypes_of_this_set():
        residual = random(7, 40, dtype=dtype, seed=3)[:, 3:22]
        check(random(7, 34, dtype=dtype), random(19, 34, dtype=dtype, seed=1), None, residual)


@each_isa
def test_more_rows_than_a_block(isa):
    for dtype in dtypes_of_this_set():
        check(random(1100, 6, dtype=dtype), random(17, 6, dtype=dtype, seed=1))


@each_isa
@pytest.mark.parametrize("terms", [1, 3, 15, 17, 769])
def test_odd_sums_of_fp32(isa, terms):
    for rows in (1, 7, 100):
        for order in OTHER:
            check(random(rows, terms), in_order(random(19, terms, seed=1), order), random(19))


@each_isa
@pytest.mark.parametrize("order", OTHER)
def test_few_rows_have_the_bits_that_each_has_alone(isa, order):
    """So a text in a batch is that text alone."""
    for dtype in dtypes_of_this_set():
        for terms in (34, 1794):
            x = random(48, terms, dtype=dtype)
            weight = in_order(random(205, terms, dtype=dtype, seed=1), order)
            bias, residual = random(205, dtype=dtype, seed=2), random(48, 205, dtype=dtype, seed=3)
            alone = torch.cat(
                [product(x[i : i + 1], weight, bias, residual[i : i + 1]) for i in range(48)]
            )
            for rows in (*range(2, 10), 13, 48):
                together = product(x[:rows], weight, bias, residual[:rows])
                assert torch.equal(together, alone[:rows]), rows
            for times in (2,) if order == "rows" else (2, 3):  # packed in the same order of sums
                more = product(x.repeat(times, 1), weight, bias, residual.repeat(times, 1))
                assert torch.equal(more, alone.repeat(times, 1)), times


@each_isa
@pytest.mark.parametrize("order", OTHER)
def test_many_columns_of_few_rows(isa, order):
    """More than a call of a kernel has, and the last of them no whole block."""
    for dtype in dtypes_of_this_set():
        for rows in (1, 8, 48):
            x = random(rows, 40, dtype=dtype)
            check(x, in_order(random(4301, 40, dtype=dtype, seed=1), order))


@each_isa
def test_long_sums_of_few_rows(isa):
    """Longer than what is held of X, whatever the number of rows."""
    for dtype in dtypes_of_this_set():
        for rows, terms in ((1, 74_000), (3, 25_000), (4, 20_000), (5, 1540)):
            for order in OTHER:
                weight = random(9, terms, seed=1).div(terms**0.5).to(dtype)
                check(random(rows, terms, dtype=dtype), in_order(weight, order))


@each_isa
@pytest.mark.parametrize("order", OTHER)
def test_nothing_is_read_outside_of_the_operands(isa, order):
    """What lies around them is NaN, which no product would hide."""
    for dtype in dtypes_of_this_set():
        for rows in (1, 3, 8, 13):
            for terms, columns in ((30, 17), (34, 130), (770, 49)):
                x = surrounded(random(rows, terms, dtype=dtype))
                weight = random(columns, terms, dtype=dtype, seed=1)
                weight = surrounded(weight) if order == "rows" else surrounded(weight.t()).t()
                assert bool(product(x, weight).isfinite().all())


def surrounded(x):
    """A contiguous copy with NaN before and behind it."""
    whole = torch.full((x.numel() + 256,), torch.nan, dtype=x.dtype)
    return whole[128:-128].view(x.shape).copy_(x)


@each_isa
def test_the_same_bits_on_any_number_of_threads(isa):
    before = torch.get_num_threads()
    try:
        for dtype in dtypes_of_this_set():
            for rows, order in ((1, "rows"), (5, "rows"), (5, "columns"), (333, "rows")):
                x = random(rows, 770, dtype=dtype)
                weight = in_order(random(700, 770, dtype=dtype, seed=1), order)
                results = []
                for threads in (1, 2, 3):
                    torch.set_num_threads(threads)
                    results.append(product(x, weight, gelu=True))
                assert all(torch.equal(result, results[0]) for result in results)
    finally:
        torch.set_num_threads(before)


@each_isa
def test_long_sums_round_less_than_eager(isa):
    """So no sum is too long for the tolerance rule."""
    for rows in (8, 128):
        for order in OTHER:
            x, weight = random(rows, 3072), in_order(random(64, 3072, seed=1), order)
            oracle = eager(x.double(), weight.double())
            results = product(x, weight), eager(x, weight)
            error, theirs = ((t.double() - oracle).square().mean().sqrt() for t in results)
            assert error < 1.5 * theirs


@each_isa
def test_gelu_of_what_is_large_or_no_number(isa):
    numbers = [
        0.0,
        -1e-30,
        1e-30,
        -0.5,
        0.5,
        -6.0,
        6.0,
        -14.0,
        14.9,
        15.1,
        88.0,
        -88.0,
        3e38,
        -3e38,
    ]
    x = torch.tensor([*numbers, torch.inf, torch.nan])[:, None]
    actual = product(x, torch.ones(1, 1), gelu=True)
    expected = F.gelu(x.double())
    torch.testing.assert_close(actual.double(), expected, equal_nan=True, rtol=1e-6, atol=3e-7)
    # x Phi(x) tends to 0 there, which 0 times infinity does not say.
    assert product(torch.tensor([[-torch.inf]]), torch.ones(1, 1), gelu=True).item() == 0.0


@each_isa
def test_gelu_is_as_exact_as_atens(isa):
    x = torch.linspace(-8, 8, 100_001)[:, None]
    check(x, torch.ones(1, 1), gelu=True)


@each_isa
def test_no_number_stays_in_its_row(isa):
    for dtype in dtypes_of_this_set():
        for rows in (5, 100):
            x = random(rows, 66, dtype=dtype)
            x[2, 65], x[3, 0] = torch.nan, torch.inf
            actual = product(x, random(70, 66, dtype=dtype, seed=1))
            assert bool(actual[2].isnan().all())
            assert not bool(actual[3].isfinite().any())
            assert bool(actual[[0, 1, 4]].isfinite().all())


@pytest.mark.parametrize("which", ["x", "weight", "bias", "residual"])
def test_what_lies_otherwise_is_copied(which):
    tensors = {
        "x": random(12, 34), "weight": random(19, 34, seed=1), "bias": random(19, seed=2),
        "residual": random(12, 19, seed=3),
    }  # fmt: skip
    expected = product(**tensors)
    t = tensors[which]
    spread = torch.full((2 * t.shape[0], *(2 * n for n in t.shape[1:])), torch.nan)
    gaps = spread[(slice(None, None, 2),) * t.dim()].copy_(t)
    assert torch.equal(product(**{**tensors, which: gaps}), expected)


def test_takes():
    sets = _extension.require().attention_isa_available()
    assert cpu_linear.takes(torch.float32, 3)
    assert not cpu_linear.takes(torch.bfloat16, 3)
    assert not cpu_linear.takes(torch.float16, 4)
    assert not cpu_linear.takes(torch.float64, 4)
    assert cpu_linear.takes(torch.bfloat16, 4) == ("avx512_bf16" in sets)


REFUSED = {
    "weight": (random(5, 7), ShapeError, r"weight has shape \(5, 7\), expected \(5, 8\)"),
    "bias": (random(4), ShapeError, r"bias has shape \(4,\)"),
    "residual": (random(2, 5), ShapeError, "residual has shape"),
    "out": (random(5, 3).t(), ArgumentError, "out is not contiguous"),
    "x": (random(3, 8).half(), ArgumentError, "no kernel here for sums of 8 products"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    arguments = {
        "x": random(3, 8), "weight": random(5, 8), "bias": random(5), "residual": random(3, 5),
        "gelu": False, "out": torch.empty(3, 5),
    }  # fmt: skip
    cpu_linear.linear(**arguments)
    arguments[name], error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        cpu_linear.linear(**arguments)
    if name in ("weight", "bias", "residual", "out"):
        arguments[name] = arguments[name].double()
        with pytest.raises((ArgumentError, ShapeError), match=name):
            cpu_linear.linear(**arguments)


def test_nothing_is_refused():
    with pytest.raises(ShapeError, match="without a zero"):
        cpu_linear.linear(random(0, 8), random(5, 8), None, None, False, torch.empty(0, 5))


ENTRY = {
    "dtype": DTYPES[torch.float32], "rows": 3, "terms": 8, "columns": 5, "x_row": 8, "x_term": 1,
    "weight_column": 8, "weight_term": 1, "bias": 0, "residual": 0, "residual_row": 0, "out_row": 5,
    "gelu": False, "threads": 1, "isa": "auto",
}  # fmt: skip
WRONG = {
    "no rows": ({"rows": 0}, "must be positive"),
    "no weight": ({"weight": 0}, "must not be null"),
    "x in gaps": ({"x_term": 2}, "rows or terms of x must be contiguous"),
    "weight in gaps": ({"weight_term": 2}, "columns or terms of weight"),
    "no kernel": ({"dtype": DTYPES[torch.float16]}, "no kernel for this dtype"),
    "pairs parted": ({"dtype": DTYPES[torch.bfloat16], "terms": 7}, "must not be parted"),
    "no threads": ({"threads": 0}, "threads must be at least 1"),
    "no such set": ({"isa": "sse9", "dtype": 3}, "no kernel for this dtype and isa sse9"),
    "gelu and residual": ({"gelu": True, "residual": 64}, "exclude each other"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_entry_refuses_what_no_tensor_can_be(name):
    tensors = {"x": random(3, 8), "weight": random(5, 8), "out": torch.empty(3, 5)}
    change, message = WRONG[name]
    fields = {**ENTRY, **{key: t.data_ptr() for key, t in tensors.items()}}
    entry = _extension.require().linear
    entry(**fields)
    with pytest.raises(ValueError, match=message):
        entry(**fields | change)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        entry(**fields | {"colums": 5})


def test_a_lower_set_is_used_on_request():
    entry, takes = _extension.require().linear, _extension.require().linear_takes
    assert all(takes(DTYPES[torch.float32], name) for name in ("auto", *ISAS))
    assert not takes(DTYPES[torch.bfloat16], ISAS[0])
    x, weight = random(20, 100), random(64, 100, seed=1)
    results = []
    for name in ISAS:
        out = torch.empty(20, 64)
        fields = {**ENTRY, "rows": 20, "terms": 100, "columns": 64, "out_row": 64, "x_row": 100}
        fields |= {"weight_column": 100, "x": x.data_ptr(), "weight": weight.data_ptr()}
        entry(**fields | {"out": out.data_ptr(), "isa": name})
        results.append(out)
    assert any(not torch.equal(result, results[0]) for result in results[1:]) or len(ISAS) == 1
