"""The tolerance rule itself, and the poison that the other tests rely on."""

from __future__ import annotations

import math

import pytest
import torch

from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.tolerance import assert_within, error_and_bound, move_by_one_rounding

F64 = torch.float64
NAN, INF = float("nan"), float("inf")


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def test_error_and_bound_are_the_formula():
    exact = f64(1.0, -4.0, 0.5)
    eager = (exact + f64(0.0, 0.25, 0.0)).float()
    actual = (exact + f64(0.125, 0.0, 0.0)).float()
    error, bound = error_and_bound(actual, eager, exact)
    assert error == 0.125
    assert bound == 2 * (0.25 + 2**-23 * 4.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_the_edge_of_the_rule(dtype):
    exact = f64(1.0, 2.0)
    eager = exact.to(dtype)
    bound = 2 * torch.finfo(dtype).eps * 2.0
    assert_within((exact + f64(bound, 0)).to(dtype), eager, exact)
    with pytest.raises(AssertionError, match=r"w: error .* exceeds the bound .* at \(0,\)"):
        assert_within((exact + f64(2 * bound, 0)).to(dtype), eager, exact, "w")


@pytest.mark.parametrize("wrong", [NAN, INF, -INF])
def test_what_is_not_finite_fails(wrong):
    exact, eager = torch.ones(2, 3, dtype=F64), torch.ones(2, 3)
    actual = eager.clone()
    actual[1, 2] = wrong
    with pytest.raises(AssertionError, match=r"error inf .* at \(1, 2\): got -?(nan|inf), exact 1"):
        assert_within(actual, eager, exact)


def test_a_broken_eager_does_not_widen_the_bound():
    exact = f64(1.0, 1.0)
    broken = torch.tensor([1.0, NAN])
    assert error_and_bound(torch.ones(2), broken, exact)[1] == 2 * 2**-23
    with pytest.raises(AssertionError):
        assert_within(torch.tensor([1.0, 1.5]), broken, exact)
    with pytest.raises(AssertionError):
        assert_within(broken, broken, exact)


def test_overflow_of_the_right_answer_is_right():
    exact = f64(1e6, 1.0)
    half = exact.half()
    assert half[0] == INF
    assert_within(half, half, exact)
    with pytest.raises(AssertionError):
        assert_within(torch.tensor([-INF, 1.0]).half(), half, exact)
    with pytest.raises(AssertionError, match="exact 1000000"):
        assert_within(torch.tensor([6e4, 1.0]).half(), half, exact)
    assert_within(torch.tensor([NAN, 1.0]), torch.tensor([NAN, 1.0]), f64(NAN, 1.0))
    with pytest.raises(AssertionError):
        assert_within(torch.tensor([0.0, 1.0]), torch.tensor([NAN, 1.0]), f64(NAN, 1.0))


def test_tensors_without_elements_or_dimensions():
    empty = torch.zeros(0, 3)
    assert error_and_bound(empty, empty, empty.to(F64)) == (0.0, 0.0)
    assert_within(empty, empty, empty.to(F64))
    one = torch.tensor(2.0, requires_grad=True)
    assert_within(one, one, one.to(F64))
    with pytest.raises(AssertionError, match=r"at \(\)"):
        assert_within(one + 1, one, one.to(F64))


def test_what_cannot_be_compared():
    x, exact = torch.ones(2), torch.ones(2, dtype=F64)
    with pytest.raises(ShapeError, match=r"actual has shape \(1,\), but eager has \(2,\)"):
        error_and_bound(x[:1], x, exact)
    with pytest.raises(ShapeError, match=r"but exact has \(1,\)"):
        error_and_bound(x, x, exact[:1])
    with pytest.raises(ArgumentError, match=r"exact has dtype torch.float32"):
        error_and_bound(x, x, x)
    with pytest.raises(ArgumentError, match=r"but eager has torch.bfloat16"):
        error_and_bound(x, x.bfloat16(), exact)
    with pytest.raises(ArgumentError, match="compare the rest exactly"):
        error_and_bound(x.long(), x.long(), exact)
    with pytest.raises(AssertionError, match="out: actual has shape"):
        assert_within(x[:1], x, exact, "out")


def test_uninitialised_memory_is_poisoned_in_tests():
    like = torch.ones(2, 2)
    for x in (
        torch.empty(3),
        torch.empty(2, dtype=torch.bfloat16),
        torch.empty_like(like),
        torch.empty_strided((2, 2), (2, 1)),
        like.new_empty(3),
        like.new_empty_strided((2, 2), (1, 2)),
    ):
        assert math.isnan(float(x.float().sum()))
        assert x.isnan().all()
    assert torch.empty(2, dtype=torch.int64).dtype == torch.int64
    assert torch.empty(2, requires_grad=True).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_move_to_a_neighbouring_number_up_or_down(dtype):
    def moved(seed):
        layer = torch.nn.Linear(8, 64).to(dtype)
        with torch.no_grad():
            for weight in layer.parameters():
                weight.fill_(1.5)
        move_by_one_rounding(layer, seed)
        return torch.cat([weight.detach().flatten() for weight in layer.parameters()])

    steps = (moved(0) - 1.5) / torch.finfo(dtype).eps
    assert steps.unique().tolist() == [-1, 1]
    assert abs(steps.sum()) < steps.numel() / 4
    assert torch.equal(moved(0), moved(0))
    assert not torch.equal(moved(0), moved(1))


def test_the_poison_leaves_memory_on_the_device_that_is_asked_for():
    with torch.device("meta"):
        assert torch.empty(1).is_meta
        assert torch.nn.Linear(2, 2).weight.is_meta
    assert torch.empty(1).isnan()
