"""Shifts, bit fields and permutations of the PTX interpreter, against Python's whole numbers."""

from __future__ import annotations

import pytest
from ptx_operations import Op, check, edges, number, values_of

SHIFTS = [0, 1, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 0x80000001, 0xFFFFFFFF]
"""Amounts of a shift, those of a width and more too."""


@pytest.mark.parametrize("kind", ["b16", "b32", "b64", "u16", "s16", "u32", "s32", "u64", "s64"])
def test_shifts_of_a_width_and_more(kind: str) -> None:
    width = int(kind[1:])

    def left(a: int, by: int) -> int:
        return a << min(by, width)

    def right(a: int, by: int) -> int:
        return number(f"{'s' if kind[0] == 's' else 'u'}{width}", a) >> min(by, width)

    name, truth = ("shl", left) if kind[0] == "b" else ("shr", right)
    op = Op(f"{name}.{kind}", (width, 32), width, truth)
    check(op, values_of(op, (edges(width), SHIFTS)))


@pytest.mark.parametrize("mode", ["wrap", "clamp"])
@pytest.mark.parametrize("direction", ["l", "r"])
def test_funnel_shift(direction: str, mode: str) -> None:
    def truth(a: int, b: int, c: int) -> int:
        by = min(c, 32) if mode == "clamp" else c & 31
        both = b << 32 | a
        return (both << by) >> 32 if direction == "l" else both >> by

    op = Op(f"shf.{direction}.{mode}.b32", (32, 32, 32), 32, truth)
    check(op, values_of(op, (edges(32), edges(32)[:8], SHIFTS)))


PLACES = [0, 1, 4, 16, 31, 32, 33, 40, 63, 64, 65, 255, 256, 0x101, 0xFFFFFFFF]
"""Positions and lengths of bit fields; only their low byte counts."""


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bit_field_taken_out(kind: str) -> None:
    width = int(kind[1:])

    def truth(a: int, b: int, c: int) -> int:
        start, length = b & 0xFF, c & 0xFF
        bits = [(a >> i) & 1 for i in range(width)]
        fill = 0 if kind[0] == "u" or length == 0 else bits[min(start + length - 1, width - 1)]
        chosen = [
            bits[start + i] if i < length and start + i < width else fill for i in range(width)
        ]
        return sum(bit << i for i, bit in enumerate(chosen))

    op = Op(f"bfe.{kind}", (width, 32, 32), width, truth)
    check(op, values_of(op, (edges(width), PLACES, PLACES)))


@pytest.mark.parametrize("width", [32, 64])
def test_bit_field_put_in(width: int) -> None:
    def truth(a: int, b: int, c: int, d: int) -> int:
        start, length = c & 0xFF, d & 0xFF
        for i in range(length):
            if start + i < width:
                b = b & ~(1 << (start + i)) | ((a >> i) & 1) << (start + i)
        return b

    op = Op(f"bfi.b{width}", (width, width, 32, 32), width, truth)
    check(op, values_of(op, (edges(width), edges(width)[:6], PLACES, PLACES)))


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("shift", ["", ".shiftamt"])
def test_highest_bit(kind: str, shift: str) -> None:
    width = int(kind[1:])

    def truth(a: int) -> int:
        if kind[0] == "s" and a >> (width - 1):
            a ^= (1 << width) - 1
        place = a.bit_length() - 1
        return place if place < 0 or not shift else width - 1 - place

    op = Op(f"bfind{shift}.{kind}", (width,), 32, truth)
    check(op, values_of(op) + [(1 << i,) for i in range(width)])


# For each mode and each value of the selector's two low bits: the bytes of the result, the highest
# first, of {b, a}'s eight.
BYTES_BY_MODE = {
    "f4e": ("3210", "4321", "5432", "6543"),
    "b4e": ("5670", "6701", "7012", "0123"),
    "rc8": ("0000", "1111", "2222", "3333"),
    "ecl": ("3210", "3211", "3222", "3333"),
    "ecr": ("0000", "1110", "2210", "3210"),
    "rc16": ("1010", "3232", "1010", "3232"),
}


def _permuted(a: int, b: int, c: int) -> int:
    source = (b << 32 | a).to_bytes(8, "little")
    result = 0
    for i in range(4):
        nibble = (c >> (4 * i)) & 15
        byte = source[nibble & 7]
        if nibble & 8:
            byte = 0xFF if byte & 0x80 else 0
        result |= byte << (8 * i)
    return result


def test_bytes_permuted() -> None:
    selectors = [0x3210, 0x7654, 0x5410, 0x7632, 0xFEDC, 0xBA98, 0x8F0C, 0x12340000, 0xFFFF1111]
    words = [0, 0x80FF7F01, 0x01234567, 0x89ABCDEF, 0xFFFFFFFF]
    op = Op("prmt.b32", (32, 32, 32), 32, _permuted)
    check(op, values_of(op, (words, words, selectors)))


@pytest.mark.parametrize("mode", sorted(BYTES_BY_MODE))
def test_bytes_permuted_by_mode(mode: str) -> None:
    def truth(a: int, b: int, c: int) -> int:
        source = (b << 32 | a).to_bytes(8, "little")
        chosen = [source[int(place)] for place in reversed(BYTES_BY_MODE[mode][c & 3])]
        return int.from_bytes(bytes(chosen), "little")

    op = Op(f"prmt.b32.{mode}", (32, 32, 32), 32, truth)
    words = [0x80FF7F01, 0x01234567, 0x89ABCDEF]
    check(op, values_of(op, (words, words, [0, 1, 2, 3, 4, 7, 0xFFFFFFFE])))


@pytest.mark.parametrize("lut", [0x00, 0x01, 0x2A, 0x80, 0x96, 0xB8, 0xCA, 0xE8, 0xF0, 0xFE, 0xFF])
def test_any_function_of_three_bits(lut: int) -> None:
    def truth(a: int, b: int, c: int) -> int:
        places = range(32)
        index = [((a >> i & 1) << 2) | ((b >> i & 1) << 1) | (c >> i & 1) for i in places]
        return sum((lut >> index[i] & 1) << i for i in places)

    op = Op(f"lop3.b32 %d, %a, %b, %c, {lut:#x};", (32, 32, 32), 32, truth)
    check(op, values_of(op, (edges(32)[:7], edges(32)[7:], edges(32)[::2])))
