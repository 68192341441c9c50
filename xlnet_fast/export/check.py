"""Is an export the model? Held to the project's tolerance on several shapes, the edges among them.

    |export - exact|  <=  2 * (|model - exact| + band)

``exact`` is Hugging Face's own model in float64, ``model`` the accelerated one in fp32
(:mod:`xlnet_fast.tolerance`), or in the dtype that is exported. Where that is exceeded, what
rounding every step may do counts, too; and for an export that adds in another order than PyTorch,
how far the model is off with other texts of the shape: with few numbers it may be near by luck.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xlnet_fast.errors import XLNetFastError
from xlnet_fast.export.source import Head, Source, inputs_of
from xlnet_fast.rounding import effect_of_rounding
from xlnet_fast.tolerance import FACTOR, error_and_bound, more_for_cancellation

_LEAST_OTHERS, _MOST_OTHERS, _OTHER_TOKENS = 4, 40, 4096  # other texts of a shape

Run = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
"""An export that is loaded: :data:`INPUTS` in, the head's outputs out."""


@dataclass(frozen=True)
class Ranges:
    """What an export takes: rows 1 to ``max_batch``, tokens ``least_length`` to ``max_length``.

    Where they are ``fixed``, ``max_batch`` rows of ``max_length`` tokens and no others.
    """

    max_batch: int
    least_length: int
    max_length: int
    fixed: bool = False

    def shapes(self) -> list[tuple[int, int]]:
        """Rows and tokens that are tried: one row of the least, odd sizes, each edge.

        The most rows are tried with few tokens and the most tokens with one row: both at once
        would take gigabytes.
        """
        if self.fixed:
            return [(self.max_batch, self.max_length)]
        wanted = [(1, 1), (1, 7), (3, 17), (2, 33), (self.max_batch, 5), (1, self.max_length)]
        fitted = [
            (min(rows, self.max_batch), min(max(length, self.least_length), self.max_length))
            for rows, length in wanted
        ]
        return list(dict.fromkeys(fitted))

    def told(self) -> str:
        """Where an export is compared, as the end of a sentence."""
        if self.fixed:
            tried = len(self.paddings(*self.shapes()[0]))
            return f"with {tried} paddings of {self.max_batch} rows of {self.max_length} tokens"
        return f"at {len(self.shapes())} shapes"

    def paddings(self, rows: int, length: int) -> list[list[int] | None]:
        """Of each call that is tried at a shape the padding of its rows, as of ``inputs_of``.

        The one shape of fixed ranges is tried with short texts, too, from one token on.
        """
        if not self.fixed:
            return [None]
        return [None, [max(0, length - 1 - 2 * row) for row in range(rows)]]


@dataclass(frozen=True)
class Seen:
    """Of one output at one shape the largest error against float64, and the bound."""

    rows: int
    length: int
    output: str
    error: float
    bound: float
    from_model: float  # the largest difference from the accelerated model


@torch.no_grad()
def check(run: Run, source: Source, ranges: Ranges, *, adds_otherwise: bool = False) -> list[Seen]:
    """Compare an export with the model, shape by shape.

    Args:
        adds_otherwise: whether its sums are in another order than PyTorch's, as XLA's are.

    Raises:
        XLNetFastError: it fails at a shape, or an output is outside the rule; says which.
    """
    double = Head(copy.deepcopy(source.plain.model).double(), source.architecture).eval()
    seen = []
    calls = [(*shape, padding) for shape in ranges.shapes() for padding in ranges.paddings(*shape)]
    for rows, length, padding in calls:
        given = inputs_of(rows, length, source.config.vocab_size, padding=padding)
        expected = source.head(*given)
        try:
            found = tuple(run(*given))
        except Exception as error:  # of whatever runs it
            raise XLNetFastError(
                f"the export fails with {rows} rows of {length} tokens: "
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            ) from error
        if [x.shape for x in found] != [x.shape for x in expected]:
            raise XLNetFastError(
                f"the export gives shapes {[tuple(x.shape) for x in found]} with {rows} rows of "
                f"{length} tokens, the model {[tuple(x.shape) for x in expected]}"
            )
        seen += _compare(found, expected, double, given, source, adds_otherwise)
    return seen


def _compare(
    found: tuple[Tensor, ...],
    expected: tuple[Tensor, ...],
    double: Head,
    given: tuple[Tensor, Tensor, Tensor],
    source: Source,
    adds_otherwise: bool,
) -> list[Seen]:
    rows, length = given[0].shape
    exact, seen = double(*given), []
    for place, name in enumerate(source.head.outputs):
        ours, model, truth = found[place], expected[place], exact[place]
        where = f"{name} with {rows} rows of {length} tokens"
        if not ours.is_floating_point():
            if not torch.equal(ours, model):
                raise XLNetFastError(f"the export is wrong: {where} differs from the model's")
            continue
        error, bound = error_and_bound(ours, model, truth)
        if error > bound:
            bound += _more(double, given, place, truth, ours.dtype)
        if error > bound and adds_otherwise:
            bound += _by_luck(double, source, given, place, model, truth)
        if not error <= bound:
            raise XLNetFastError(
                f"the export is wrong: {where} is off by {error:.3g}, and rounding allows "
                f"{bound:.3g}; nothing was written"
            )
        apart = float((ours - model).abs().max())
        seen.append(Seen(rows, length, name, error, bound, apart))
    return seen


def _more(
    double: Head,
    given: tuple[Tensor, Tensor, Tensor],
    place: int,
    truth: Tensor,
    dtype: torch.dtype,
) -> float:
    """What the bound grows by where large terms cancel."""
    exact = {"": truth}
    effect = effect_of_rounding(lambda: {"": double(*given)[place]}, exact, dtype)
    return more_for_cancellation(truth, dtype, effect[""])


def _by_luck(
    double: Head,
    source: Source,
    given: tuple[Tensor, Tensor, Tensor],
    place: int,
    model: Tensor,
    truth: Tensor,
) -> float:
    """What the bound grows by, as the model is farther off with another text of this shape."""
    rows, length = given[0].shape
    near, _ = error_and_bound(model, model, truth)
    far = near
    others = max(_LEAST_OTHERS, min(_MOST_OTHERS, _OTHER_TOKENS // (rows * length)))
    for seed in range(1, others + 1):
        other = inputs_of(rows, length, source.config.vocab_size, seed, _padding_of(given))
        found = source.head(*other)[place]
        error, _ = error_and_bound(found, found, double(*other)[place])
        if math.isfinite(error):
            far = max(far, error)
    return FACTOR * (far - near)


def _padding_of(given: tuple[Tensor, Tensor, Tensor]) -> list[int]:
    return [int(hidden) for hidden in (given[1] == 0).sum(-1)]
