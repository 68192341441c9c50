"""One deliberate fault: what a maintainer could get wrong, and which tests should tell."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A piece of a file, and what takes its place.

    Attributes:
        name: short and its own, ``room: what is wrong``.
        file: from the repository's root.
        text: to be found there exactly once. instead: in its place.
        tests: files or node ids, the likeliest first.
        select: of these tests, as pytest's ``-k``; "" takes all.
        equivalent: why no test can find it; "" where one has to.
        objects: of a header in ``csrc``, the sources that are compiled with it (stems); the others
            keep their object, since what shares a header shares the fault. () compiles all.
        interpreted: whether the tests need Triton's interpreter.
    """

    name: str
    file: str
    text: str
    instead: str
    tests: tuple[str, ...]
    select: str = ""
    equivalent: str = ""
    objects: tuple[str, ...] = ()
    interpreted: bool = False


class Stale(Exception):
    """The entry does not fit the sources any more."""


def changed(fault: Fault, text: str) -> str:
    """A file's text with the fault in it.

    Raises:
        Stale: what is to be replaced is not there, or more than once.
    """
    count = text.count(fault.text)
    if count != 1:
        raise Stale(f"{fault.file} has the text {count} times, expected once")
    return text.replace(fault.text, fault.instead)


def faults_of(
    file: str,
    tests: str,
    *entries: tuple[str, str, str],
    select: str = "",
    equivalent: str = "",
    objects: tuple[str, ...] = (),
    interpreted: bool = False,
) -> list[Fault]:
    """Faults of one file that the same tests should find.

    Args:
        tests: from the folder of tests, apart by spaces.
        entries: of each fault its name, the text and what takes its place.
    """
    found = tuple(f"tests/{test}" for test in tests.split())
    return [
        Fault(name, file, text, instead, found, select, equivalent, objects, interpreted)
        for name, text, instead in entries
    ]
