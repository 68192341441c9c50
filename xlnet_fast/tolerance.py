"""The project's one tolerance: no hand-set atol, the yardstick is HF eager in the same dtype.

    max |actual - exact|  <=  2 * (max |eager - exact| + band)
    band = eps(dtype) * max |exact|

``exact`` is the float64 result on the same inputs (rounded to the working dtype before, so that all
three see the same numbers), ``eager`` is HF's own code in the working dtype, ``dtype`` is that of
``actual``. The band, one unit of rounding of the tensor's largest value, keeps the rule meaningful
where eager happens to be exact. Each tensor is held to it on its own.

That largest value is the wrong one where a result is what large terms leave when they cancel, as
some gradients of a trained model: ``xlnet-fast check``, which meets models that nobody chose, then
takes one rounding of every step for the band (``more_for_cancellation``). Tests and ``qualify``
choose their inputs, and have no need of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xlnet_fast.errors import ArgumentError, ShapeError

FACTOR = 2.0
"""How far our error may exceed eager's plus one rounding band."""


def error_and_bound(actual: Tensor, eager: Tensor, exact: Tensor) -> tuple[float, float]:
    """Largest absolute error of ``actual`` and the largest that the rule allows.

    Args:
        actual: any shape, a floating dtype: the result under test.
        eager: same shape and dtype: HF eager's result.
        exact: same shape, float64 (a float32 oracle would decide nothing).

    Returns:
        (error, bound). The error is infinite where ``actual`` is NaN or infinite and ``exact``,
        rounded to the dtype of ``actual``, is not (or the other way round, or of another sign).
        Elements that eager gets wrong in that way do not count for its error, so a broken eager
        never widens the bound. Two empty tensors have error and bound 0.

    Raises:
        ShapeError: the shapes differ.
        ArgumentError: the dtypes are not as above.
    """
    _check(actual, eager, exact)
    if actual.numel() == 0:
        return 0.0, 0.0
    exact = exact.detach().to("cpu")
    rounded = exact.to(actual.dtype)  # overflows to infinity where the right answer does
    band = _band(exact, rounded)
    errors_of_eager = _errors(eager, exact, rounded)
    errors = errors_of_eager if actual is eager else _errors(actual, exact, rounded)
    error_of_eager = float(errors_of_eager.masked_fill(~errors_of_eager.isfinite(), 0.0).max())
    return float(errors.max()), FACTOR * (error_of_eager + band)


def more_for_cancellation(exact: Tensor, dtype: torch.dtype, effect: float) -> float:
    """What the bound of :func:`error_and_bound` grows by, where the band is that of every step.

    The band is one rounding of the result. Where terms cancel, one rounding of each of them does
    more: ``FACTOR * max(0, effect - band)``, with ``effect`` from ``rounding.effect_of_rounding``.

    Args:
        exact: any shape, float64. dtype: of the result under test. effect: of the same result.
    """
    if exact.numel() == 0:
        return 0.0
    exact = exact.detach().to("cpu")
    return FACTOR * max(0.0, effect - _band(exact, exact.to(dtype)))


def assert_within(actual: Tensor, eager: Tensor, exact: Tensor, name: str = "") -> None:
    """Hold one tensor to the tolerance rule; arguments as :func:`error_and_bound`.

    Raises:
        AssertionError: outside the rule, or a shape or dtype that differs; the first line says by
            how much and where.
    """
    label = f"{name}: " if name else ""
    try:
        error, bound = error_and_bound(actual, eager, exact)
    except ArgumentError as problem:
        raise AssertionError(f"{label}{problem}") from problem
    if error <= bound:
        return
    oracle = exact.detach().to("cpu")
    errors = _errors(actual, oracle, oracle.to(actual.dtype))
    where = tuple(int(i) for i in torch.unravel_index(errors.argmax(), errors.shape))
    raise AssertionError(
        f"{label}error {error:.3e} exceeds the bound {bound:.3e} ({actual.dtype}, shape "
        f"{tuple(actual.shape)}) at {where}: got {float(actual[where]):.9g}, exact "
        f"{float(oracle[where]):.9g}, HF eager {float(eager[where]):.9g}; "
        f"{int((errors > bound).sum())} of {errors.numel()} elements are outside"
    )


def move_by_one_rounding(model: nn.Module, seed: int) -> None:
    """Each weight to its next floating-point number, up or down at random: a yardstick of training.

    How far the losses of a model so moved stray is what rounding alone may do; a run that strays
    no farther cannot be told from it.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            up = torch.rand(weight.shape, generator=generator) < 0.5
            toward = torch.where(up, torch.inf, -torch.inf).to(weight)
            weight.copy_(torch.nextafter(weight, toward))


def _band(exact: Tensor, rounded: Tensor) -> float:
    """One unit of rounding of the largest value that is finite in the dtype of ``rounded``."""
    magnitude = float(exact.abs().masked_fill(~rounded.isfinite(), 0.0).max())
    return torch.finfo(rounded.dtype).eps * magnitude


def _errors(value: Tensor, exact: Tensor, rounded: Tensor) -> Tensor:
    """|value - exact|, infinite where only one of the two is finite, 0 where both agree not to be.

    ``rounded`` is ``exact`` in the working dtype, whose overflow is no error.
    """
    value = value.detach().to("cpu", torch.float64)
    errors = (value - exact).abs()
    comparable = value.isfinite() & rounded.isfinite()
    if bool(comparable.all()):
        return errors
    rounded = rounded.to(torch.float64)
    same = (value == rounded) | (value.isnan() & rounded.isnan())
    return torch.where(comparable, errors, torch.where(same, 0.0, torch.inf))


def _check(actual: Tensor, eager: Tensor, exact: Tensor) -> None:
    for name, x in (("eager", eager), ("exact", exact)):
        if x.shape != actual.shape:
            raise ShapeError(
                f"actual has shape {tuple(actual.shape)}, but {name} has {tuple(x.shape)}"
            )
    if not actual.is_floating_point():
        raise ArgumentError(
            f"actual has dtype {actual.dtype}, expected a floating dtype: compare the rest exactly"
        )
    if eager.dtype != actual.dtype:
        raise ArgumentError(f"actual has dtype {actual.dtype}, but eager has {eager.dtype}")
    if exact.dtype != torch.float64:
        raise ArgumentError(f"exact has dtype {exact.dtype}, expected torch.float64")
