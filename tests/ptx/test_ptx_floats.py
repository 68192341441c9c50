"""Floating point of the PTX interpreter, against exact fractions rounded once."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import ptx_snippets
import pytest
from ptx_truth import (
    BF16,
    F16,
    F32,
    FORMATS,
    Format,
    as_double,
    computed,
    edges,
    flushed,
    is_finite,
    is_nan,
    number,
    rounded,
    rows,
    some,
)


class Op(NamedTuple):
    """An instruction that rounds once: what it computes of fractions, and of doubles."""

    name: str
    exact: Callable[..., Fraction]
    special: Callable[..., float]
    operands: int


def _divided(a: float, b: float) -> float:
    with np.errstate(all="ignore"):
        return float(np.float64(a) / np.float64(b))


def _fma(a: float, b: float, c: float) -> float:
    # A finite product's infinite part cannot be: operands are narrower than a double.
    return a * b + c


ADD = Op("add", lambda a, b: a + b, lambda a, b: a + b, 2)
SUB = Op("sub", lambda a, b: a - b, lambda a, b: a - b, 2)
MUL = Op("mul", lambda a, b: a * b, lambda a, b: a * b, 2)
FMA = Op("fma.rn", lambda a, b, c: a * b + c, _fma, 3)
FLOATS = [
    (ADD, "add.f32"),
    (ADD, "add.rn.f32"),
    (ADD, "add.ftz.f32"),
    (SUB, "sub.f32"),
    (SUB, "sub.ftz.f32"),
    (MUL, "mul.f32"),
    (MUL, "mul.rn.f32"),
    (MUL, "mul.ftz.f32"),
    (FMA, "fma.rn.f32"),
    (FMA, "fma.rn.ftz.f32"),
    (FMA, "fma.rn.f16"),
    (FMA, "fma.rn.bf16"),
    (ADD, "add.f16"),
    (SUB, "sub.f16"),
    (MUL, "mul.f16"),
]


def _truth(op: Op, form: Format, ftz: bool, mode: str = "rn") -> Callable[..., int | None]:
    def truth(*bits: int) -> int | None:
        if ftz:
            bits = tuple(flushed(each, form) for each in bits)
        result = computed(op.exact, op.special, bits, form, mode)
        return flushed(result, form) if ftz and result is not None else result

    return truth


def check(
    name: str,
    form: Format,
    operands: int,
    values: Sequence[tuple[int, ...]],
    truth: Callable[..., int | None],
    within: Callable[[int, int], bool] = lambda found, expected: found == expected,
) -> None:
    """Hold an instruction of one format against its truth."""
    names = "abc"[:operands]
    body = f"{name} %d, {', '.join(f'%{each}' for each in names)};"
    ptx_snippets.compare(
        body,
        dict.fromkeys(names, form.bits),
        values,
        form.bits,
        truth,
        lambda bits: is_nan(bits, form),
        within,
    )


def _flushed_alike(found: int, expected: int, form: Format) -> bool:
    """The same bits; where a result is flushed, it may be so before or after it is rounded."""
    least = 1 << form.fraction
    edge = {found & ~form.sign, expected & ~form.sign} == {0, least}
    return found == expected or (edge and (found ^ expected) & form.sign == 0)


@pytest.mark.parametrize(("op", "name"), FLOATS, ids=[name for _, name in FLOATS])
def test_rounded_once(op: Op, name: str) -> None:
    form = FORMATS[name.rpartition(".")[2]]
    values = rows(form, op.operands, name)
    ftz = ".ftz" in name
    truth = _truth(op, form, ftz)
    if not ftz:
        check(name, form, op.operands, values, truth)
        return
    check(
        name,
        form,
        op.operands,
        values,
        truth,
        lambda found, expected: _flushed_alike(found, expected, form),
    )


@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
@pytest.mark.parametrize("op", [ADD, MUL], ids=lambda op: op.name)
def test_rounded_in_a_direction(op: Op, mode: str) -> None:
    def special(a: float, b: float) -> float:
        result = op.special(a, b)
        # The sum of opposite numbers is -0 where rounding is down.
        opposite = op is ADD and result == 0.0 and math.copysign(1, a) != math.copysign(1, b)
        return -0.0 if opposite and mode == "rm" else result

    directed = op._replace(special=special)
    name = f"{op.name}.{mode}.f32"
    check(name, F32, 2, rows(F32, 2, name), _truth(directed, F32, False, mode))


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_two_halves_at_once(kind: str) -> None:
    form = FORMATS[kind]
    values = rows(form, 3, f"x2 {kind}")
    pairs = list(zip(values, reversed(values), strict=True))
    columns = {
        name: np.array([low[i] | high[i] << 16 for low, high in pairs], np.uint32)
        for i, name in enumerate("abc")
    }
    found = ptx_snippets.table(f"fma.rn.{kind}x2 %d, %a, %b, %c;", columns, {"d": 32})["d"]
    truth = _truth(FMA, form, False)
    for (low, high), result in zip(pairs, map(int, found), strict=True):
        for row, half in ((low, result & 0xFFFF), (high, result >> 16)):
            expected = truth(*row)
            good = is_nan(half, form) if expected is None else half == expected
            assert good, f"{row}: {half:#x}, not {expected}"


@pytest.mark.parametrize("name", ["div.rn.f32", "rcp.rn.f32", "sqrt.rn.f32"])
def test_division_and_root_rounded_once(name: str) -> None:
    family = name.partition(".")[0]

    def truth(*bits: int) -> int | None:
        a = bits[0]
        if family == "sqrt":
            return _root(a)
        numerator, denominator = (a, bits[1]) if family == "div" else (0x3F800000, a)
        return _quotient(numerator, denominator)

    operands = 2 if family == "div" else 1
    check(name, F32, operands, rows(F32, operands, name), truth)


def _quotient(a: int, b: int) -> int | None:
    double = _divided(as_double(a, F32), as_double(b, F32))
    if math.isnan(double):
        return None
    sign = (a ^ b) & F32.sign
    if math.isinf(double):
        return sign | F32.infinity
    if not is_finite(b, F32):
        return sign
    return rounded(number(a, F32) / number(b, F32), F32, "rn", sign != 0)


def _root(a: int) -> int | None:
    if is_nan(a, F32) or (a & F32.sign and a != F32.sign):
        return None
    if not is_finite(a, F32) or number(a, F32) == 0:
        return a
    scaled = int(number(a, F32) * 2**400)
    root = math.isqrt(scaled)
    # Half a unit, far below any rounding, stands for all that the whole root leaves out.
    exact = root * root == scaled
    return rounded(Fraction(2 * root + (0 if exact else 1), 2**201), F32)


@pytest.mark.parametrize("nan", ["", ".NaN"])
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("name", ["min", "max"])
def test_least_and_greatest(name: str, kind: str, nan: str) -> None:
    form = FORMATS[kind]

    def key(bits: int) -> tuple[float, int]:
        return as_double(bits, form), 0 if bits & form.sign else 1  # +0 is more than -0

    def truth(a: int, b: int) -> int | None:
        if is_nan(a, form) and is_nan(b, form):
            return None
        if is_nan(a, form) or is_nan(b, form):
            return None if nan else (b if is_nan(a, form) else a)
        return (min if name == "min" else max)(a, b, key=key)

    check(f"{name}{nan}.{kind}", form, 2, rows(form, 2, name), truth)


@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_sign_taken_and_turned(kind: str) -> None:
    form = FORMATS[kind]
    values = rows(form, 1, kind)
    check(f"neg.{kind}", form, 1, values, lambda a: None if is_nan(a, form) else a ^ form.sign)
    check(f"abs.{kind}", form, 1, values, lambda a: None if is_nan(a, form) else a & ~form.sign)


def _relative(bits: int) -> Callable[[int, int], bool]:
    """Whether two floats differ by 2**-bits of the second at most; zeros and infinities agree."""

    def within(found: int, expected: int) -> bool:
        if found == expected:
            return True
        if not (is_finite(found, F32) and is_finite(expected, F32)):
            return False
        a, b = number(found, F32), number(expected, F32)
        return abs(a - b) <= abs(b) / 2**bits + F32.least * (1 if abs(b) < F32.least_normal else 0)

    return within


def _of_double(value: float, ftz: bool) -> int | None:
    if math.isnan(value):
        return None
    sign = F32.sign if math.copysign(1.0, value) < 0 else 0
    if math.isinf(value):
        return sign | F32.infinity
    bits = rounded(Fraction(value), F32, "rn", sign != 0)
    return flushed(bits) if ftz else bits


def _exponential(a: float) -> float:
    return math.inf if a > 1000 else 0.0 if a < -1000 else 2.0**a


def _logarithm(a: float) -> float:
    return -math.inf if a == 0 else math.nan if a < 0 else a if math.isinf(a) else math.log2(a)


def _reciprocal_root(a: float) -> float:
    return _divided(1.0, math.sqrt(a)) if a > 0 else _divided(1.0, a) if a == 0 else math.nan


APPROXIMATED: dict[str, tuple[Callable[[float], float], int]] = {
    "ex2.approx": (_exponential, 22),
    "lg2.approx": (_logarithm, 21),
    "rcp.approx": (lambda a: _divided(1.0, a), 23),
    "sqrt.approx": (lambda a: math.sqrt(a) if a > 0 else a if a == 0 else math.nan, 22),
    "rsqrt.approx": (_reciprocal_root, 22),
}


@pytest.mark.parametrize("ftz", ["", ".ftz"])
@pytest.mark.parametrize("name", sorted(APPROXIMATED))
def test_approximations(name: str, ftz: str) -> None:
    function, bits = APPROXIMATED[name]

    def truth(a: int) -> int | None:
        value = as_double(flushed(a) if ftz else a, F32)
        return None if math.isnan(value) else _of_double(function(value), bool(ftz))

    chosen = random.Random(name)
    small = [rounded(Fraction(chosen.uniform(-150, 140)), F32) for _ in range(300)]
    whole = [rounded(Fraction(n), F32) for n in range(-151, 129)]
    values = [(each,) for each in edges(F32) + small + whole] + some(F32, 300, 1, name)
    if name == "lg2.approx":  # near 1 its error is absolute, and not to be had here
        values = [row for row in values if not 0.9 < as_double(row[0], F32) < 1.1]
    # As the least normal number is reached, a flush may come a rounding earlier.
    within = _relative(bits)
    check(f"{name}{ftz}.f32", F32, 1, values, truth, within)


def test_division_good_to_two_units() -> None:
    def within(found: int, expected: int) -> bool:
        return abs(found - expected) <= 2 if is_finite(expected, F32) else found == expected

    ordinary = [row for row in rows(F32, 2, "full") if _is_ordinary(row[1])]
    check("div.full.f32", F32, 2, ordinary, _quotient, within)


def _is_ordinary(bits: int) -> bool:
    """Whether it is no divisor past 2**126, where an approximation may give 0."""
    return not is_finite(bits, F32) or abs(number(bits, F32)) <= 2**126


def test_a_constant_is_the_bits_it_is_written_in() -> None:
    a = np.array([0x3F800000, 0x40490FDB, 0x80000000], np.uint32)
    body = "add.f32 %d, %a, 0f3F800000;\nmov.f32 %e, 0f7FC00001;\nmov.b64 %f, 0d3FF8000000000000;"
    found = ptx_snippets.table(body, {"a": a}, {"d": 32, "e": 32, "f": 64})
    assert (found["d"].view(np.float32) == a.view(np.float32) + np.float32(1)).all()
    assert (found["e"] == 0x7FC00001).all()
    assert (found["f"].view(np.float64) == 1.5).all()


def test_the_truth_itself() -> None:
    """Rounding here against numpy's, which has the formats of 16 and 32 bits too."""
    chosen = random.Random(0)
    for _ in range(2000):
        scale = chosen.choice((1, 2.0**-140, 2.0**-126, 2.0**127, 2.0**-14, 2.0**15))
        value = scale * chosen.uniform(-2, 2)
        with np.errstate(all="ignore"):
            assert rounded(Fraction(value), F32) == int(np.float32(value).view(np.uint32))
            half = int(np.float16(value).view(np.uint16))
        assert rounded(Fraction(value), F16, "rn", value < 0) == half
    for bits in range(0, 65536, 7):
        if is_finite(bits, BF16):
            assert as_double(bits, BF16) == float(np.uint32(bits << 16).view(np.float32))
