"""Comparisons of floats in the PTX interpreter, against Python's of the same numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import ptx_snippets
import pytest
from ptx_truth import BF16, F16, F32, as_double, edges, flushed

ORDERED: dict[str, Callable[[float, float], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b and not _unordered(a, b),
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "num": lambda a, b: not _unordered(a, b),
    "nan": lambda a, b: _unordered(a, b),
}


def _unordered(a: float, b: float) -> bool:
    return math.isnan(a) or math.isnan(b)


def _compares(name: str) -> Callable[[float, float], bool]:
    if name in ORDERED:
        return ORDERED[name]
    ordered = ORDERED[name.removesuffix("u")]
    return lambda a, b: _unordered(a, b) or ordered(a, b)


@pytest.mark.parametrize("ftz", ["", ".ftz"])
def test_floats_compared(ftz: str) -> None:
    names = [*ORDERED, "equ", "neu", "ltu", "leu", "gtu", "geu"]
    pairs = ptx_snippets.rows(edges(F32), edges(F32))
    columns = {
        name: np.array([pair[i] for pair in pairs], np.uint32) for i, name in enumerate("ab")
    }
    body = "\n".join(f"setp.{name}{ftz}.f32 %is_{name}, %a, %b;" for name in names)
    found = ptx_snippets.table(body, columns, {f"is_{name}": 1 for name in names})
    doubles = [
        tuple(as_double(flushed(bits) if ftz else bits, F32) for bits in pair) for pair in pairs
    ]
    for name in names:
        expected = [_compares(name)(*pair) for pair in doubles]
        assert found[f"is_{name}"].tolist() == expected, name


@pytest.mark.parametrize("kind", ["f16x2", "ftz.f16x2", "bf16x2"])
def test_pairs_of_halves_compared(kind: str) -> None:
    """The lower halves decide about the first predicate, the upper ones about the second."""
    form = BF16 if kind == "bf16x2" else F16
    pairs = ptx_snippets.rows(edges(form), edges(form))
    highs = pairs[7:] + pairs[:7]
    columns = {
        name: np.array([low[i] | high[i] << 16 for low, high in zip(pairs, highs, strict=True)])
        for i, name in enumerate("ab")
    }
    columns = {name: values.astype(np.uint32) for name, values in columns.items()}
    columns["c"] = np.arange(len(pairs)) % 3 == 0
    names = [*ORDERED, "equ", "neu", "ltu", "leu", "gtu", "geu"]
    doubles = [
        tuple(as_double(flushed(bits, form) if "ftz" in kind else bits, form) for bits in pair)
        for pair in pairs
    ]
    for name in names:
        body = f"setp.{name}.{kind} %low|%high, %a, %b;\nsetp.{name}.and.{kind} %d|%e, %a, %b, !%c;"
        found = ptx_snippets.table(body, columns, {"low": 1, "high": 1, "d": 1, "e": 1})
        low = np.array([_compares(name)(*pair) for pair in doubles])
        high = np.roll(low, -7)
        assert (found["low"] == low).all(), name
        assert (found["high"] == high).all(), name
        assert (found["d"] == (low & ~columns["c"])).all(), name
        assert (found["e"] == (high & ~columns["c"])).all(), name
