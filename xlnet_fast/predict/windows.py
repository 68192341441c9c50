"""How a text that is too long is cut, or read in windows that share some tokens."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence


def cut_lengths(first: int, second: int, room: int) -> tuple[int, int]:
    """Tokens that are kept of a pair: the longer one is cut first, as fine-tuning does.

    The tokenizers library's ``longest_first``; a single text has a second one of length 0.

    Args:
        first, second: tokens that there are. room: that there may be, of both.
    """
    if first + second <= room:
        return first, second
    short, long = sorted((first, second))
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short = room // 2
        long = short + room % 2
    return (short, long) if first <= second else (long, short)


def window_bounds(length: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Where the windows of a text begin and end; the last one ends with it and may be short.

    Args:
        length: tokens of the text. room: of a window. stride: that neighbours share, below room.
    """
    if length <= room:
        return [(0, length)]
    count = 1 + -(-(length - room) // (room - stride))
    begins = [i * (room - stride) for i in range(count)]
    return [(begin, min(begin + room, length)) for begin in begins]


def most_context(bounds: Sequence[tuple[int, int]], place: int, length: int) -> int:
    """In which window a token has most text beside it, on the side where it has less.

    What ends with the text is not less. Of several such windows the first.

    Args:
        bounds: of the windows, in order. place: of the token, in one of them at least.
        length: tokens of the text.
    """
    number = first = bisect_right(bounds, place, key=lambda window: window[1])
    most = -1
    while number < len(bounds) and bounds[number][0] <= place:
        begin, end = bounds[number]
        before = place - begin if begin else length
        behind = end - 1 - place if end < length else length
        if min(before, behind) > most:
            most, first = min(before, behind), number
        number += 1
    return first
