"""Floating point written out: bits to exact fractions, and fractions rounded to bits.

What the PTX interpreter computes is held against this, which knows nothing of any hardware: a
number is a `Fraction`, and a rounding picks one of the two neighbours.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@dataclass(frozen=True)
class Format:
    """A binary format of IEEE 754's kind.

    Args:
        bits: of the whole number.
        fraction: bits behind the point.
    """

    bits: int
    fraction: int

    @property
    def bias(self) -> int:
        """What is added to an exponent."""
        return (1 << (self.bits - self.fraction - 2)) - 1

    @property
    def sign(self) -> int:
        """The sign's bit."""
        return 1 << (self.bits - 1)

    @property
    def infinity(self) -> int:
        """The bits of +inf."""
        return ((2 * self.bias + 1) << self.fraction) & (self.sign - 1)

    @property
    def largest(self) -> int:
        """The bits of the largest finite number."""
        return self.infinity - 1

    @property
    def least(self) -> Fraction:
        """The smallest positive subnormal number."""
        return Fraction(1, 1 << (self.bias - 1 + self.fraction))

    @property
    def least_normal(self) -> Fraction:
        """The smallest positive normal number."""
        return self.least * (1 << self.fraction)

    def dtype(self) -> type[np.unsignedinteger]:
        """The unsigned integers as wide."""
        return {16: np.uint16, 32: np.uint32, 64: np.uint64}[self.bits]


F16 = Format(16, 10)
BF16 = Format(16, 7)
F32 = Format(32, 23)
F64 = Format(64, 52)
FORMATS = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64}


def is_nan(bits: int, form: Format) -> bool:
    """Whether these are the bits of a NaN."""
    return (bits & (form.sign - 1)) > form.infinity


def is_infinite(bits: int, form: Format) -> bool:
    """Whether these are the bits of an infinity."""
    return (bits & (form.sign - 1)) == form.infinity


def is_finite(bits: int, form: Format) -> bool:
    """Whether these are the bits of a number."""
    return (bits & (form.sign - 1)) < form.infinity


def number(bits: int, form: Format) -> Fraction:
    """The number that finite bits stand for; -0 is 0."""
    magnitude = bits & (form.sign - 1)
    exponent, fraction = magnitude >> form.fraction, magnitude & ((1 << form.fraction) - 1)
    if exponent == 0:
        value = fraction * form.least
    else:
        shifted = exponent - form.bias - form.fraction
        whole = (1 << form.fraction) + fraction
        value = Fraction(whole << shifted) if shifted >= 0 else Fraction(whole, 1 << -shifted)
    return -value if bits & form.sign else value


def as_double(bits: int, form: Format) -> float:
    """The same with NaN, infinities and -0, as Python's float: exact for all formats."""
    sign = -1.0 if bits & form.sign else 1.0
    if is_nan(bits, form):
        return math.nan
    if is_infinite(bits, form):
        return sign * math.inf
    return math.copysign(float(number(bits, form)), sign)


def rounded(value: Fraction, form: Format, mode: str = "rn", negative_zero: bool = False) -> int:
    """The bits of a number rounded to a format.

    Args:
        value: the exact number.
        mode: PTX's name: "rn" (to even), "rna" (ties away), "rz", "rm" (down), "rp" (up).
        negative_zero: the sign where value is 0.
    """
    if value == 0:
        return form.sign if negative_zero else 0
    sign = form.sign if value < 0 else 0
    magnitude = abs(value)
    # The unit in the last place at this number: a power of two, never below the subnormals'.
    power = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** power > magnitude:
        power -= 1
    ulp = max(Fraction(2) ** (power - form.fraction), form.least)
    whole = magnitude // ulp
    rest = magnitude / ulp - whole
    away = {
        "rn": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2 == 1),
        "rna": rest >= Fraction(1, 2),
        "rz": False,
        "rm": rest > 0 and sign != 0,
        "rp": rest > 0 and sign == 0,
    }[mode]
    result = (whole + away) * ulp
    if result > number(form.largest, form):
        # Past the largest, a mode that never rounds away from zero here stays at it.
        stays = mode == "rz" or (mode == "rm" and not sign) or (mode == "rp" and bool(sign))
        return sign | (form.largest if stays else form.infinity)
    return sign | _encoded(result, form)


def _encoded(value: Fraction, form: Format) -> int:
    steps = value / form.least
    assert steps.denominator == 1
    whole = steps.numerator
    length = whole.bit_length()
    if length <= form.fraction + 1:
        return whole  # subnormals, and the first normals, count on
    shift = length - form.fraction - 1
    return (shift << form.fraction) + (whole >> shift)


def flushed(bits: int, form: Format = F32) -> int:
    """What `.ftz` makes of an operand or a result: a subnormal becomes a zero of its sign."""
    magnitude = bits & (form.sign - 1)
    return bits & form.sign if magnitude < (1 << form.fraction) else bits


def computed(
    exact: Callable[..., Fraction],
    special: Callable[..., float],
    operands: Sequence[int],
    form: Format,
    mode: str = "rn",
) -> int | None:
    """An operation's result in its own format, None for a NaN.

    Args:
        exact: of the finite operands, as fractions.
        special: the same in doubles: decides about NaN, infinities and the sign of a zero.
        operands: their bits.
        form: of operands and result.
        mode: as `rounded` has it.
    """
    double = special(*(as_double(each, form) for each in operands))
    if math.isnan(double):
        return None
    if not all(is_finite(each, form) for each in operands):
        if math.isinf(double):
            return form.infinity | (form.sign if double < 0 else 0)
        raise AssertionError("an operation on infinities that is finite: write it out")
    value = exact(*(number(each, form) for each in operands))
    negative = math.copysign(1.0, double) < 0 if double == 0.0 else value < 0
    return rounded(value, form, mode, negative)


def edges(form: Format) -> list[int]:
    """Bits where an operation may go wrong: zeros, subnormals, the least, largest, NaN, .."""
    one = form.bias << form.fraction
    found = [0, 1, 2, (1 << form.fraction) - 1, 1 << form.fraction, (1 << form.fraction) + 1]
    found += [one, one + 1, one - 1, one + (1 << form.fraction), one + (1 << (form.fraction - 1))]
    found += [form.largest, form.largest - 1, form.infinity]
    # Near half of the exponents, so that products are near the largest and the least.
    found += [(form.bias // 2 << form.fraction) + 5, (3 * form.bias // 2 << form.fraction) + 3]
    found += [one + (12 << form.fraction), one - (12 << form.fraction) + 1]
    found += [form.infinity + 1, form.infinity | 1 << (form.fraction - 1)]
    return found + [form.sign | each for each in found]


def some(form: Format, count: int, operands: int, name: str) -> list[tuple[int, ...]]:
    """Random numbers of like size, so that sums cancel, and of any size."""
    chosen = random.Random(name)
    found: list[tuple[int, ...]] = []
    for _ in range(count // 2):
        near = chosen.randrange(form.largest >> form.fraction)
        row = []
        for _ in range(operands):
            exponent = min(max(near + chosen.randrange(-2, 3), 0), 2 * form.bias)
            bits = exponent << form.fraction | chosen.getrandbits(form.fraction)
            row.append(bits | chosen.choice((0, form.sign)))
        found.append(tuple(row))
        found.append(tuple(chosen.getrandbits(form.bits) for _ in range(operands)))
    return found


def rows(form: Format, operands: int, name: str, count: int = 500) -> list[tuple[int, ...]]:
    """Edges against edges, as many as are worth it, and random rows."""
    pairs = list(itertools.product(edges(form), repeat=operands)) if operands < 3 else []
    if not pairs:
        chosen = random.Random(name)
        pairs = [tuple(chosen.choice(edges(form)) for _ in range(operands)) for _ in range(900)]
    if len(pairs) > 900:
        pairs = random.Random(name).sample(pairs, 900)
    return pairs + some(form, count, operands, name)
