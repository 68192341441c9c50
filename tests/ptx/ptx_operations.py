"""Integer instructions as data: what they compute, and the values on which they are tried."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import ptx_snippets

NAMES = "abce"  # of operands; `%d` is the result


class Op(NamedTuple):
    """An instruction that writes `%d`, and what it computes.

    `text` is its name, or a whole body where it has a ";". Operands are `%a`, `%b`, `%c`, `%e`, of
    the widths in bits; the truth has their unsigned values, and its result is cut to `output` bits.
    """

    text: str
    widths: tuple[int, ...]
    output: int
    truth: Callable[..., int]

    @property
    def body(self) -> str:
        """The instruction with its operands."""
        operands = ", ".join(f"%{name}" for name in NAMES[: len(self.widths)])
        return self.text if ";" in self.text else f"{self.text} %d, {operands};"


def signed(value: int, width: int) -> int:
    """The number that bits stand for in two's complement."""
    value &= (1 << width) - 1
    return value - (1 << width) if value >> (width - 1) else value


def number(kind: str, value: int) -> int:
    """The number that bits stand for in a type: "s32", "u16", .."""
    width = int(kind[1:])
    return signed(value, width) if kind[0] == "s" else value & ((1 << width) - 1)


def edges(width: int) -> list[int]:
    """Values where an instruction of that width may go wrong."""
    top = 1 << (width - 1)
    found = [0, 1, 2, 3, 7, 31, top - 1, top, top + 1, 2 * top - 1, 2 * top - 2, 2 * top - 8]
    found += [(1 << (width // 2)) - 1, 1 << (width // 2), 0x5A0F6933C0A51E87 & (2 * top - 1)]
    return found


def values_of(op: Op, columns: Sequence[Sequence[int]] | None = None) -> list[tuple[int, ...]]:
    """The rows on which an instruction is tried: edge by edge, then at random."""
    chosen = random.Random(op.text)
    columns = columns or [edges(width) for width in op.widths]
    pairs = list(itertools.product(*columns))
    if len(pairs) > 700:
        pairs = chosen.sample(pairs, 700)
    return pairs + [tuple(chosen.getrandbits(width) for width in op.widths) for _ in range(68)]


def check(op: Op, values: Sequence[tuple[int, ...]]) -> None:
    """Hold an instruction against its truth on those rows."""
    operands = dict(zip(NAMES, op.widths, strict=False))
    mask = (1 << op.output) - 1
    ptx_snippets.compare(
        op.body, operands, values, op.output, lambda *row: int(op.truth(*row)) & mask
    )
