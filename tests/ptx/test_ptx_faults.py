"""Deliberate faults in the PTX of this project's kernels, each of which the interpreter must find.

A run with one must end with a `Fault`, or with a result out of tolerance. The unharmed kernel runs
before, in the same process. A few places of the forward kernels; more, and the backward kernels',
are in `ptx_every_fault.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

pytest.importorskip("triton")

import ptx_machine
from ptx_harm import (
    Harm,
    Runner,
    barrier_in_a_branch,
    barrier_removed,
    comparison_turned,
    moved,
    predicate_dropped,
    runner,
    swapped_fragment,
    swapped_tiles,
    wait_one_too_late,
    warp_barrier_removed,
    zeros_not_filled_in,
)

from xlnet_fast.kernels.triton import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET is set")

RACE, COPY = r"races: it", r"where a copy of"
BOUNDS, WRONG = r"goes out of bounds", r"exceeds the bound|out of tolerance|wrote outside"
WAITS = r"is a barrier for whole warps|waits for lanes|waits for all threads"


@dataclass(frozen=True)
class Kind:
    """A kind of fault: how it is made, what is said of it, and in what share of places it tells.

    Not everywhere does one tell: compilers put a barrier where none is needed, and a tile has rows
    that the case has not.
    """

    harm: Harm
    said: str
    share: float


KINDS = {
    "a barrier removed": Kind(barrier_removed, f"{RACE}|{COPY}", 0.5),
    "a barrier of a warp removed": Kind(warp_barrier_removed, RACE, 0.5),
    "a barrier in a branch": Kind(barrier_in_a_branch, f"{WAITS}|{RACE}|{COPY}", 1.0),
    "a wait one too late": Kind(wait_one_too_late, COPY, 0.5),
    "registers of a left fragment swapped": Kind(swapped_fragment(1), WRONG, 0.5),
    "registers of a right fragment swapped": Kind(swapped_fragment(2), WRONG, 0.5),
    "tiles of an ldmatrix swapped": Kind(swapped_tiles, WRONG, 0.5),
    "a load from shared memory 16 bytes on": Kind(
        moved(r"^ld\.shared", 16), f"{RACE}|{WRONG}|{BOUNDS}|{COPY}|{WAITS}", 0.5
    ),
    "a store to shared memory 16 bytes on": Kind(
        moved(r"^st\.shared", 16), f"{RACE}|{WRONG}|{BOUNDS}|{COPY}", 0.5
    ),
    "an ldmatrix 16 bytes on": Kind(
        moved(r"^ldmatrix", 16), f"{RACE}|{WRONG}|{BOUNDS}|{COPY}", 0.5
    ),
    "a load from global memory 16 bytes on": Kind(
        moved(r"ld\.global", 16), f"{WRONG}|{BOUNDS}", 0.5
    ),
    "a copy 16 bytes on": Kind(
        moved(r"cp\.async\.c[ag]", 16), f"{RACE}|{WRONG}|{BOUNDS}|{COPY}", 0.5
    ),
    "a load's predicate dropped": Kind(
        predicate_dropped(r"ld\.global"), f"{RACE}|{WRONG}|{BOUNDS}", 0.3
    ),
    "a store's predicate dropped": Kind(predicate_dropped(r"st\.global"), f"{RACE}|{BOUNDS}", 0.5),
    "a copy's predicate dropped": Kind(
        predicate_dropped(r"cp\.async"), f"{BOUNDS}|{COPY}|{WRONG}", 1.0
    ),
    "a copy of what is not there": Kind(zeros_not_filled_in, BOUNDS, 0.2),
    "a mask's bit inverted": Kind(
        comparison_turned(r"^setp\.(eq|ne)\."), f"{RACE}|{WRONG}|{BOUNDS}|{COPY}|{WAITS}", 0.5
    ),
}


def held(found: Runner, kind: Kind, texts: list[str]) -> None:
    """Run harmed texts; enough of them must be found, and each for its own reason."""
    verdicts = [verdict for text in texts if (verdict := found.verdict(text)) is not None]
    for verdict in verdicts:
        assert re.search(kind.said, verdict), verdict
    wanted = max(1, int(kind.share * len(texts)))
    assert len(verdicts) >= wanted, f"found in {len(verdicts)} of {len(texts)} places"


def spread(texts: list[str], count: int) -> list[str]:
    """Some of them, from the first to the last."""
    if len(texts) <= count:
        return texts
    return [texts[i * (len(texts) - 1) // (count - 1)] for i in range(count)]


TRITON = ("triton", "_forward_kernel")
CUDA = ("cuda", "rel_attention_forward_kernel")
NOT_OF_TRITON = ("a barrier of a warp removed",)
OF_CUDA = (
    "a barrier removed", "a barrier of a warp removed", "a barrier in a branch",
    "a wait one too late", "registers of a left fragment swapped", "tiles of an ldmatrix swapped",
    "a store to shared memory 16 bytes on", "a load from global memory 16 bytes on",
)  # fmt: skip


@pytest.mark.parametrize("name", [name for name in KINDS if name not in NOT_OF_TRITON])
def test_a_fault_in_what_triton_compiles(name: str) -> None:
    found = runner(*TRITON)
    kind = KINDS[name]
    held(found, kind, spread(list(kind.harm(found.lines)), 4))


@pytest.mark.parametrize("name", OF_CUDA)
def test_a_fault_in_what_nvcc_compiles(name: str) -> None:
    found = runner(*CUDA)
    kind = KINDS[name]
    held(found, kind, spread(list(kind.harm(found.lines)), 2))


@pytest.mark.parametrize("kernel", [TRITON, CUDA], ids=lambda pair: pair[0])
def test_a_strip_too_short(kernel: tuple[str, str]) -> None:
    """The launch asks for 64 bytes of shared memory less than the kernel takes."""
    found = runner(*kernel)
    found.missing_bytes = 64
    try:
        with pytest.raises(ptx_machine.Fault, match=BOUNDS):
            found.run(lambda text: text)
    finally:
        found.missing_bytes = 0


@pytest.mark.parametrize("kernel", [TRITON, CUDA], ids=lambda pair: pair[0])
def test_nothing_of_a_fault_is_left_behind(kernel: tuple[str, str]) -> None:
    """A launch that ends with copies under way, and the unharmed kernel after it."""
    found = runner(*kernel)
    late = list(wait_one_too_late(found.lines))[-1]
    for seed in range(2):
        with pytest.raises(ptx_machine.Fault, match=COPY):
            found.run(lambda _: late, seed=seed)
        found.run(lambda text: text, seed=seed)
