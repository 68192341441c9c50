"""Random rounding: what it moves, by how much, and the scale of what cancels."""

from __future__ import annotations

import pytest
import torch

from xlnet_fast.rounding import RandomRounding, effect_of_rounding
from xlnet_fast.tolerance import FACTOR, more_for_cancellation

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_product_moves_by_up_to_one_rounding(dtype):
    a, b = draw(40, 50), draw(50, 60, seed=1)
    with RandomRounding(dtype, 0):
        moved = a @ b
    relative = ((moved - a @ b) / (a @ b)).abs()
    unit = torch.finfo(dtype).eps * (1 if dtype is torch.float32 else 0.5)
    assert 0.9 * unit < float(relative.max()) <= unit * (1 + 1e-6)
    assert 0.45 * unit < float(relative.mean()) < 0.55 * unit


def test_a_seed_decides_and_masks_stay():
    """Sums, comparisons and integers are as they are: of masks they decide what is seen."""
    a, mask = draw(4, 5), torch.eye(5, dtype=F64)
    results = []
    for seed in (0, 0, 1):
        with RandomRounding(torch.float32, seed):
            results.append(a @ mask)
            assert torch.equal((mask - 1 > -1), mask > 0)
            assert torch.equal(mask + mask - mask, mask)
            assert torch.equal(torch.arange(3), torch.tensor([0, 1, 2]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert torch.equal(a @ mask, a)


@pytest.mark.parametrize("op", [torch.softmax, torch.log_softmax])
def test_the_gradient_of_a_softmax_misses_its_sum_by_its_terms(op):
    """Its rows sum to zero; rounding misses that at the scale of the terms, not of the result."""
    scores = draw(6, 40).requires_grad_()
    grad = 1000 + draw(6, 40, seed=2)  # a constant that cancels

    def row_sums() -> dict[str, torch.Tensor]:
        (out,) = torch.autograd.grad(op(scores, -1), scores, grad)
        return {"sums": out.sum(-1), "grad": out}

    exact = row_sums()
    assert float(exact["sums"].abs().max()) < 1e-9
    effect = effect_of_rounding(row_sums, exact, torch.float32)["sums"]
    terms = 1000 * (1 if op is torch.softmax else 40) * 2**-23
    assert 0.1 * terms < effect < 3 * terms


def test_a_softmax_is_kept_in_float32():
    """bf16's unit is that of the result; within, terms cancel in float32."""
    grad = torch.full((1, 8), 1000.0, dtype=F64)  # the gradient is zero

    probability = torch.full((1, 8), 0.125, dtype=F64)

    def of() -> dict[str, torch.Tensor]:
        return {"x": torch.ops.aten._softmax_backward_data(grad, probability, -1, F64)}

    effect = effect_of_rounding(of, of(), torch.bfloat16)["x"]
    assert 0 < effect < 1000 * 2**-22


def test_the_effect_is_the_largest_of_the_draws():
    a = draw(3, 3)
    exact = {"x": a @ a, "nothing": torch.zeros(0, dtype=F64)}

    def compute() -> dict[str, torch.Tensor]:
        return {"x": a @ a, "nothing": torch.zeros(0, dtype=F64)}

    effects = [effect_of_rounding(compute, exact, torch.float32, draws) for draws in (1, 2, 9)]
    assert effects[0]["x"] <= effects[1]["x"] <= effects[2]["x"]
    assert effects[0]["x"] < effects[2]["x"] <= 1.001 * 2**-23 * float(exact["x"].abs().max())
    assert effects[0]["nothing"] == 0.0


def test_the_bound_grows_by_what_is_beyond_the_band():
    exact = torch.tensor([0.5, -2.0], dtype=F64)
    band = 2.0 * 2**-23
    assert more_for_cancellation(exact, torch.float32, 3 * band) == FACTOR * 2 * band
    assert more_for_cancellation(exact, torch.float32, band / 2) == 0.0
    assert more_for_cancellation(exact[:0], torch.float32, 1.0) == 0.0
