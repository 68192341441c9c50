"""The check before every measurement: outputs within the tolerance rule, or nothing is timed.

The one rule of the project (`xlnet_fast.tolerance`): the error against float64 is at most twice the
error of Hugging Face eager in the same dtype plus one rounding band.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CheckResult:
    """`error` is the largest absolute error against float64 over all tensors; `message` if red."""

    ok: bool
    error: float
    message: str = ""


def max_error(actual: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Return the largest absolute difference, infinity where a value is not finite."""
    worst = 0.0
    for a, e in zip(actual, exact, strict=True):
        if a.shape != e.shape:
            return float("inf")
        difference = (a.detach().double() - e.detach().double()).abs()
        if not bool(torch.isfinite(difference).all()):
            return float("inf")
        if difference.numel():
            worst = max(worst, float(difference.max()))
    return worst


def check(
    actual: Sequence[Tensor],
    eager: Sequence[Tensor],
    exact: Sequence[Tensor],
    names: Sequence[str],
) -> CheckResult:
    """Compare a provider's tensors with HF eager's in the same dtype and the float64 result.

    Every tensor is held to the rule on its own. Never raises for a wrong result: says so.
    """
    from xlnet_fast.tolerance import assert_within

    if len(actual) != len(exact):
        message = f"{len(actual)} results where {len(exact)} are expected"
        return CheckResult(False, float("inf"), message)
    error = max_error(actual, exact)
    for a, h, e, name in zip(actual, eager, exact, names, strict=True):
        if a.shape != e.shape:
            message = f"{name}: shape {tuple(a.shape)} where {tuple(e.shape)} is expected"
            return CheckResult(False, error, message)
        if _within_on_device(a.detach(), h.detach(), e.detach()):
            continue
        try:
            assert_within(a.detach(), h.detach(), e.detach(), name)
        except AssertionError as failure:
            lines = str(failure).strip().splitlines() or ["outside the tolerance"]
            return CheckResult(False, error, lines[0][:300])
    return CheckResult(True, error)


def _within_on_device(actual: Tensor, eager: Tensor, exact: Tensor) -> bool:
    """Whether the rule holds, told on the tensors' own device; False where anything is unusual.

    `assert_within` brings every tensor to the host, which for the sizes of a GPU takes longer than
    all the timing. Where dtypes are as they should be and every value is finite, as here, the rule
    is these four maxima; everything else is left to it, and so is the message of what is red.
    """
    from xlnet_fast.tolerance import FACTOR

    as_expected = (
        actual.dtype == eager.dtype
        and exact.dtype == torch.float64
        and actual.is_floating_point()
        and actual.device == eager.device == exact.device
    )
    if not as_expected or actual.numel() == 0:
        return False
    error = (actual.double() - exact).abs().max()
    error_of_eager = (eager.double() - exact).abs().max()
    largest = exact.abs().max()
    finite = torch.isfinite(torch.stack([error, error_of_eager, largest])).all()
    band = torch.finfo(actual.dtype).eps * largest
    overflows = largest > torch.finfo(actual.dtype).max
    return bool(finite & ~overflows & (error <= FACTOR * (error_of_eager + band)))
