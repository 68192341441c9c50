"""Integers, predicates and moves of the PTX interpreter, against Python's whole numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import ptx_snippets
import pytest
from ptx_operations import Op, check, edges, number, signed, values_of


def _truncated(kind: str, a: int, b: int) -> tuple[int, int]:
    """Quotient, towards zero, and remainder."""
    x, y = number(kind, a), number(kind, b)
    quotient = abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
    return quotient, x - quotient * y


def _ops() -> list[Op]:
    found = []
    for width in (16, 32, 64):
        found += [
            Op(f"add.s{width}", (width, width), width, lambda a, b: a + b),
            Op(f"sub.s{width}", (width, width), width, lambda a, b: a - b),
            Op(f"mul.lo.s{width}", (width, width), width, lambda a, b: a * b),
            Op(f"neg.s{width}", (width,), width, lambda a: -a),
            Op(f"and.b{width}", (width, width), width, lambda a, b: a & b),
            Op(f"or.b{width}", (width, width), width, lambda a, b: a | b),
            Op(f"xor.b{width}", (width, width), width, lambda a, b: a ^ b),
            Op(f"not.b{width}", (width,), width, lambda a: ~a),
            Op(f"mov.b{width}", (width,), width, lambda a: a),
            Op(f"mov.u{width}", (width,), width, lambda a: a),
        ]
    for width in (32, 64):
        found += [
            Op(f"add.u{width}", (width, width), width, lambda a, b: a + b),
            Op(f"mad.lo.s{width}", (width,) * 3, width, lambda a, b, c: a * b + c),
            Op(f"mad.lo.u{width}", (width,) * 3, width, lambda a, b, c: a * b + c),
        ]
    for kind in ("s16", "u16", "s32", "u32", "s64", "u64"):
        width = int(kind[1:])
        found += [
            Op(
                f"{name}.{kind}",
                (width, width),
                width,
                lambda a, b, kind=kind, best=best: best(number(kind, a), number(kind, b)),
            )
            for name, best in (("min", min), ("max", max))
        ]
        if width < 64:
            found += [
                Op(
                    f"mul.wide.{kind}",
                    (width, width),
                    2 * width,
                    lambda a, b, kind=kind: number(kind, a) * number(kind, b),
                ),
                Op(
                    f"mad.wide.{kind}",
                    (width, width, 2 * width),
                    2 * width,
                    lambda a, b, c, kind=kind: number(kind, a) * number(kind, b) + c,
                ),
            ]
        if width > 16:
            found.append(
                Op(
                    f"mul.hi.{kind}",
                    (width, width),
                    width,
                    lambda a, b, kind=kind, w=width: (number(kind, a) * number(kind, b)) >> w,
                )
            )
    found += [
        Op("brev.b32", (32,), 32, lambda a: int(f"{a:032b}"[::-1], 2)),
        Op("brev.b64", (64,), 64, lambda a: int(f"{a:064b}"[::-1], 2)),
        Op("popc.b32", (32,), 32, lambda a: a.bit_count()),
        Op("popc.b64", (64,), 32, lambda a: a.bit_count()),
        Op("clz.b32", (32,), 32, lambda a: 32 - a.bit_length()),
        Op("clz.b64", (64,), 32, lambda a: 64 - a.bit_length()),
        Op("abs.s32", (32,), 32, lambda a: abs(signed(a, 32))),
    ]
    return found


@pytest.mark.parametrize("op", _ops(), ids=lambda op: op.text)
def test_whole_numbers(op: Op) -> None:
    check(op, values_of(op))


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("name", ["div", "rem"])
def test_division_is_towards_zero(name: str, kind: str) -> None:
    width = int(kind[1:])
    place = ("div", "rem").index(name)
    op = Op(f"{name}.{kind}", (width, width), width, lambda a, b: _truncated(kind, a, b)[place])
    least = 1 << (width - 1)
    # What a division by zero gives, and least / -1, is not said.
    values = [
        (a, b)
        for a, b in values_of(op)
        if b != 0 and not (kind[0] == "s" and a == least and signed(b, width) == -1)
    ]
    assert len(values) > 200
    check(op, values)


WIDENED = [
    ("s64", "s32"),
    ("u64", "u32"),
    ("s32", "s16"),
    ("u32", "u16"),
    ("s64", "s16"),
    ("u64", "u16"),
    ("u32", "u64"),
    ("s32", "s64"),
    ("u16", "u32"),
    ("u16", "u64"),
    ("s16", "s32"),
]


@pytest.mark.parametrize(("to", "of"), WIDENED)
def test_whole_number_converted(to: str, of: str) -> None:
    op = Op(f"cvt.{to}.{of}", (int(of[1:]),), int(to[1:]), lambda a: number(of, a))
    check(op, values_of(op))


@pytest.mark.parametrize(("kind", "to"), [("u8", "u32"), ("s8", "s32"), ("u8", "u16")])
def test_the_low_byte_of_a_register_converted(kind: str, to: str) -> None:
    op = Op(f"cvt.{to}.{kind}", (16,), int(to[1:]), lambda a: number(kind, a))
    check(op, values_of(op, ([0, 1, 0x7F, 0x80, 0xFF, 0x100, 0xABCD, 0xFF7F],)))


@pytest.mark.parametrize("width", [16, 32, 64])
def test_one_of_two_by_a_predicate(width: int) -> None:
    values = [(a, b, c) for a in edges(width) for b in edges(width)[:4] for c in (0, 1)]
    operands = {"a": width, "b": width, "c": 1}
    body = f"selp.b{width} %d, %a, %b, %c;"
    ptx_snippets.compare(body, operands, values, width, lambda a, b, c: a if c else b)
    body = f"selp.b{width} %d, %a, 7, !%c;"
    ptx_snippets.compare(body, operands, values, width, lambda a, b, c: 7 if c else a)


COMPARED: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "lo": lambda a, b: a < b,
    "ls": lambda a, b: a <= b,
    "hi": lambda a, b: a > b,
    "hs": lambda a, b: a >= b,
}
_ORDERED = ("eq", "ne", "lt", "le", "gt", "ge")
_UNSIGNED = (*_ORDERED, "lo", "ls", "hi", "hs")


@pytest.mark.parametrize(
    ("kind", "names"),
    [(f"s{width}", _ORDERED) for width in (16, 32, 64)]
    + [(f"u{width}", _UNSIGNED) for width in (16, 32, 64)]
    + [(f"b{width}", ("eq", "ne")) for width in (16, 32, 64)],
)
def test_whole_numbers_compared(kind: str, names: Sequence[str]) -> None:
    width = int(kind[1:])
    columns = [(a, b) for a in edges(width) for b in edges(width)]
    a, b = (
        np.array(column, ptx_snippets.column_dtype(width)) for column in zip(*columns, strict=True)
    )
    body = "\n".join(f"setp.{name}.{kind} %is_{name}, %a, %b;" for name in names)
    found = ptx_snippets.table(body, {"a": a, "b": b}, {f"is_{name}": 1 for name in names})
    sign = "s" if kind[0] == "s" else "u"
    for name in names:
        expected = [
            COMPARED[name](number(f"{sign}{width}", x), number(f"{sign}{width}", y))
            for x, y in columns
        ]
        assert found[f"is_{name}"].tolist() == expected, name


def test_comparison_with_a_number_in_the_text() -> None:
    # -256 of a u16 is 0xff00, of a s16 it is -256.
    a = np.array([0, 1, 255, 256, 0x7FFF, 0xFEFF, 0xFF00, 0xFF01, 0xFFFF], np.uint16)
    body = "setp.lt.u16 %unsigned, %a, -256;\nsetp.lt.s16 %signed, %a, -256;"
    found = ptx_snippets.table(body, {"a": a}, {"unsigned": 1, "signed": 1})
    assert found["unsigned"].tolist() == (a < 0xFF00).tolist()
    assert found["signed"].tolist() == (a.view(np.int16) < -256).tolist()


@pytest.mark.parametrize("name", ["and", "or", "xor"])
def test_comparison_combined_with_a_predicate(name: str) -> None:
    columns = list(itertools.product((0, 5, 0xFFFFFFFF), (0, 5, 0xFFFFFFFF), (False, True)))
    a, b = (np.array([row[place] for row in columns], np.uint32) for place in (0, 1))
    c = np.array([row[2] for row in columns])
    body = f"setp.lt.{name}.s32 %yes|%no, %a, %b, %c;\nsetp.lt.{name}.s32 %not_c, %a, %b, !%c;"
    found = ptx_snippets.table(body, {"a": a, "b": b, "c": c}, {"yes": 1, "no": 1, "not_c": 1})
    less = a.view(np.int32) < b.view(np.int32)
    combined = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[name]
    assert (found["yes"] == combined(less, c)).all()
    assert (found["no"] == combined(~less, c)).all()
    assert (found["not_c"] == combined(less, ~c)).all()


def test_predicates_combined() -> None:
    a, b = np.array([False, False, True, True]), np.array([False, True, False, True])
    body = (
        "and.pred %all, %a, %b;\nor.pred %any, %a, %b;\nxor.pred %one, %a, %b;\n"
        "not.pred %none, %a;\nmov.pred %same, %a;\nmov.pred %always, -1;\nmov.pred %never, 0;"
    )
    outputs = dict.fromkeys(("all", "any", "one", "none", "same", "always", "never"), 1)
    found = ptx_snippets.table(body, {"a": a, "b": b}, outputs)
    expected = {"all": a & b, "any": a | b, "one": a ^ b, "none": ~a, "same": a}
    expected |= {"always": np.ones(4, bool), "never": np.zeros(4, bool)}
    for name, column in expected.items():
        assert (found[name] == column).all(), name


def test_a_register_packed_and_taken_apart() -> None:
    word = np.array([0, 0x00010002, 0xFFFF0000, 0x80007FFF, 0xDEADBEEF], np.uint32)
    double = [0, 0x0000000100000002, 0xFFFFFFFF00000000, 0x123456789ABCDEF0, 2**64 - 1]
    double = np.array(double, np.uint64)
    body = (
        "mov.b32 {%low, %high}, %a;\nmov.b32 %back, {%high, %low};\n"
        "mov.b64 {%left, %right}, %b;\nmov.b64 %turned, {%right, %left};\n"
        "mov.b64 {_, %above}, %b;\nmov.b64 %four, {%low, %high, %low, %low};"
    )
    outputs = {"low": 16, "high": 16, "back": 32, "left": 32, "right": 32, "turned": 64}
    found = ptx_snippets.table(body, {"a": word, "b": double}, outputs | {"above": 32, "four": 64})
    low, high = word & 0xFFFF, word >> 16
    assert (found["low"] == low).all()
    assert (found["high"] == high).all()
    assert (found["back"] == (low << 16 | high)).all()
    left, right = double & np.uint64(0xFFFFFFFF), double >> np.uint64(32)
    assert (found["left"] == left).all()
    assert (found["right"] == right).all()
    assert (found["above"] == right).all()
    assert (found["turned"] == (left << np.uint64(32) | right)).all()
    wide_low, wide_high = low.astype(np.uint64), high.astype(np.uint64)
    expected = wide_low | wide_high << np.uint64(16) | wide_low << np.uint64(32)
    assert (found["four"] == (expected | wide_low << np.uint64(48))).all()
