"""Conversions between numbers of the PTX interpreter, against exact fractions rounded once."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import ptx_snippets
import pytest
from ptx_truth import (
    F32,
    FORMATS,
    Format,
    edges,
    is_finite,
    is_nan,
    number,
    rounded,
    rows,
    some,
)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_every_half_widened(kind: str) -> None:
    """Exact, so that numpy's float16 and the upper half of a float32 are truth enough."""
    form = FORMATS[kind]
    bits = np.arange(65536, dtype=np.uint16)
    found = ptx_snippets.table(f"cvt.f32.{kind} %d, %a;", {"a": bits}, {"d": 32})["d"]
    if kind == "f16":
        wide = bits.view(np.float16).astype(np.float32)
    else:
        wide = (bits.astype(np.uint32) << 16).view(np.float32)
    nan = np.array([is_nan(int(each), form) for each in bits])
    assert np.isnan(found.view(np.float32)[nan]).all()
    assert (found == wide.view(np.uint32))[~nan].all()


def _near_halves(form: Format) -> list[tuple[int, ...]]:
    """Numbers of 32 bits at, just below and just above the midpoints between two halves."""
    chosen = random.Random(form.bits)
    found = edges(F32)
    for _ in range(150):
        half = chosen.randrange(form.infinity)
        middle = (number(half, form) + number(half + 1, form)) / 2 if half < form.largest else 0
        bits = rounded(Fraction(middle) * chosen.choice((1, -1)), F32)
        found += [bits - 1 if bits & ~F32.sign else 0, bits, bits + 1]
    largest = number(form.largest, form)
    step = largest - number(form.largest - 1, form)
    past = rounded(largest + step / 2, F32)
    found += [past - 1, past, past + 1, rounded(largest, F32), F32.sign | past]
    return [(bits,) for bits in found] + some(F32, 200, 1, "halves")


def _narrowed(form: Format, mode: str, bits: int) -> int | None:
    if is_nan(bits, F32):
        return None
    sign = form.sign if bits & F32.sign else 0
    if not is_finite(bits, F32):
        return sign | form.infinity
    return rounded(number(bits, F32), form, mode, sign != 0)


@pytest.mark.parametrize("mode", ["rn", "rz"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_halved(kind: str, mode: str) -> None:
    form = FORMATS[kind]
    ptx_snippets.compare(
        f"cvt.{mode}.{kind}.f32 %d, %a;",
        {"a": 32},
        _near_halves(form),
        16,
        lambda a: _narrowed(form, mode, a),
        lambda bits: is_nan(bits, form),
    )


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_two_halved_into_one_register(kind: str) -> None:
    form = FORMATS[kind]
    values = [bits for (bits,) in _near_halves(form)]
    a, b = np.array(values, np.uint32), np.array(values[::-1], np.uint32)
    found = ptx_snippets.table(f"cvt.rn.{kind}x2.f32 %d, %a, %b;", {"a": a, "b": b}, {"d": 32})
    for first, second, result in zip(values, reversed(values), map(int, found["d"]), strict=True):
        # The first operand goes into the upper half.
        for bits, half in ((first, result >> 16), (second, result & 0xFFFF)):
            expected = _narrowed(form, "rn", bits)
            good = is_nan(half, form) if expected is None else half == expected
            assert good, f"{bits:#x}: {half:#x}, not {expected}"


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
def test_whole_number_to_float(kind: str) -> None:
    width = int(kind[1:])
    chosen = random.Random(kind)
    values = [0, 1, (1 << 24) + 1, (1 << 24) + 3, (1 << 25) + 2, (1 << width) - 1]
    values += [1 << (width - 1), (1 << (width - 1)) - 1, (1 << width) - (1 << 24) - 1]
    values += [chosen.getrandbits(chosen.randrange(1, width + 1)) for _ in range(300)]

    def truth(a: int) -> int:
        return rounded(
            Fraction(a - (1 << width) if kind[0] == "s" and a >> (width - 1) else a), F32
        )

    rows_ = [(value,) for value in values]
    ptx_snippets.compare(f"cvt.rn.f32.{kind} %d, %a;", {"a": width}, rows_, 32, truth)


TO_WHOLE: dict[str, Callable[[Fraction], int]] = {
    "rni": round,  # to even
    "rzi": math.trunc,
    "rmi": math.floor,
    "rpi": math.ceil,
}


@pytest.mark.parametrize("kind", ["s32", "u32", "s64"])
@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
def test_float_to_whole_number(mode: str, kind: str) -> None:
    width = int(kind[1:])
    least = -(1 << (width - 1)) if kind[0] == "s" else 0
    largest = least + (1 << width) - 1

    def truth(a: int) -> int:
        if is_finite(a, F32):
            value = TO_WHOLE[mode](number(a, F32))
        elif is_nan(a, F32):
            value = -(1 << 63) if width == 64 else 0
        else:
            value = least if a & F32.sign else largest
        return min(max(value, least), largest) & ((1 << width) - 1)

    halves = [rounded(Fraction(n, 2), F32) for n in range(-9, 10)]
    borders = [
        rounded(Fraction(sign * (1 << bit)), F32) for sign in (1, -1) for bit in (31, 32, 63)
    ]
    borders += [bits + step for bits in borders for step in (-1, 1)]
    values = [(bits,) for bits in halves + borders + edges(F32)] + some(F32, 200, 1, kind)
    ptx_snippets.compare(f"cvt.{mode}.{kind}.f32 %d, %a;", {"a": 32}, values, width, truth)


def test_rounded_to_tf32() -> None:
    def truth(a: int) -> int | None:
        if is_nan(a, F32):
            return None
        if not is_finite(a, F32):
            return a
        tf32 = Format(19, 10)
        return rounded(number(a, F32), tf32, "rna", bool(a & F32.sign)) << 13

    middles = [(0x3F800000 | i << 13 | low,) for i in range(8) for low in (0xFFF, 0x1000, 0x1001)]
    values = [row for row in middles + rows(F32, 1, "tf32") if not is_nan(row[0], F32)]
    # What the low 13 bits hold is left open.
    ptx_snippets.compare(
        "cvt.rna.tf32.f32 %d, %a;\nand.b32 %d, %d, 0xffffe000;", {"a": 32}, values, 32, truth
    )
