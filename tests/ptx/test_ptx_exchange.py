"""What lanes of a warp tell each other in the PTX interpreter: shuffles, votes, reductions."""

from __future__ import annotations

import functools
import operator
import random
from collections.abc import Callable

import numpy as np
import ptx_machine
import pytest
from ptx_snippets import entry, launched

VALUES = np.array(random.Random(3).choices(range(1 << 32), k=32), np.uint32)


def run(body: str, *columns: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """One warp with a column's word of each lane in %a, %b, ..: its %d and %p as 0 or 1.

    What a lane does not write stays 0xdddddddd.
    """
    names = "abc"[: len(columns)]
    loads = "mul.wide.u32 %q0, %lane, 4;\n"
    for name in names:
        loads += f"add.s64 %q1, %{name}_at, %q0;\nld.global.b32 %{name}, [%q1];\n"
    stores = "add.s64 %q1, %out, %q0;\nst.global.b32 [%q1], %d;\n"
    stores += "selp.b32 %r7, 1, 0, %p;\nadd.s64 %q1, %flags, %q0;\nst.global.b32 [%q1], %r7;\nret;"
    text = entry(
        f"{loads}mov.u32 %d, 0;\nmov.pred %p, 0;\n{body}\n{stores}",
        [*(f"{name}_at" for name in names), "out", "flags"],
        "  .reg .b32 %a, %b, %c, %d;\n  .reg .pred %p;\n",
    )
    empty = np.full(32, 0xDDDDDDDD, np.uint32)
    *_, out, flags = launched(text, [*columns, empty, empty], seed=seed)
    return out, flags


def _source(mode: str, lane: int, b: int, c: int) -> tuple[int, bool]:
    """The lane that is read and whether it is within reach, as the manual has it."""
    b, clamp, segments = b & 31, c & 31, c >> 8 & 31
    least = lane & segments
    most = least | clamp & ~segments
    if mode == "up":
        source = lane - b
        return (source, True) if source >= most else (lane, False)
    if mode == "idx":
        source = least | b & ~segments & 31
    else:
        source = lane + b if mode == "down" else lane ^ b
    return (source, True) if source <= most else (lane, False)


REACHES = {"up": [0, 0x1800, 0x1000, 0x1C00], "down": [31, 0x181F, 0x101F, 15, 0x1C1F]}
REACHES |= {"bfly": [31, 0x1C1F, 0x101F, 15], "idx": [31, 0x181F, 0x1C1F, 0x1003, 7]}


@pytest.mark.parametrize("mode", sorted(REACHES))
def test_shuffle(mode: str) -> None:
    for c in REACHES[mode]:
        for b in (0, 1, 2, 3, 5, 8, 16, 31, 32, 33, 0xFFFFFFFF):
            out, flags = run(f"shfl.sync.{mode}.b32 %d|%p, %a, {b:#x}, {c:#x}, -1;", VALUES)
            for lane in range(32):
                source, reached = _source(mode, lane, b, c)
                assert out[lane] == VALUES[source], (b, c, lane)
                assert flags[lane] == reached, (b, c, lane)


@pytest.mark.parametrize("mode", sorted(REACHES))
def test_shuffle_by_an_amount_of_each_lane(mode: str) -> None:
    chosen = random.Random(mode)
    for c in REACHES[mode]:
        amounts = np.array([chosen.randrange(64) for _ in range(32)], np.uint32)
        # Without a predicate, and by registers for all.
        reach = np.full(32, c, np.uint32)
        out, _ = run(f"shfl.sync.{mode}.b32 %d, %a, %b, %c, 0xffffffff;", VALUES, amounts, reach)
        sources = [_source(mode, lane, int(amounts[lane]), c)[0] for lane in range(32)]
        assert out.tolist() == VALUES[sources].tolist()


def test_shuffle_into_the_register_it_reads() -> None:
    out, _ = run("shfl.sync.bfly.b32 %a, %a, 3, 31, -1;\nmov.b32 %d, %a;", VALUES)
    assert out.tolist() == VALUES[np.arange(32) ^ 3].tolist()


def test_shuffle_among_some_lanes() -> None:
    body = """
      setp.lt.u32 %p0, %lane, 16;
      @!%p0 bra AWAY;
      shfl.sync.down.b32 %d|%p, %a, 4, 15, 0xffff;
    AWAY:
    """
    out, flags = run(body, VALUES)
    expected = [*VALUES[4:16], *VALUES[12:16], *[0] * 16]
    assert out.tolist() == [int(value) for value in expected]
    assert flags.tolist() == [1] * 12 + [0] * 20


BODIES = {
    "shfl": "shfl.sync.bfly.b32 %d, %a, 1, 31, {mask};",
    "vote": "vote.sync.ballot.b32 %d, %p0, {mask};",
    "redux": "redux.sync.add.s32 %d, %a, {mask};",
    "match": "match.any.sync.b32 %d, %a, {mask};",
    "bar.warp": "bar.warp.sync {mask};",
}


def _parted(name: str, lower: str, upper: str) -> str:
    """The lower half of a warp at an instruction, the upper half at a barrier of the warp."""
    return f"""
      setp.lt.u32 %p0, %lane, 16;
      @!%p0 bra AWAY;
      {BODIES[name].format(mask=lower)}
      bra JOIN;
    AWAY:
      bar.warp.sync {upper};
    JOIN:
    """


@pytest.mark.parametrize("name", sorted(BODIES))
def test_a_member_that_never_comes(name: str) -> None:
    run(_parted(name, "0xffff", "0xffff0000"), VALUES)
    with pytest.raises(ptx_machine.Fault, match=r"waits for lanes 0xffff0000"):
        run(_parted(name, "-1", "-1"), VALUES)


@pytest.mark.parametrize("name", sorted(BODIES))
def test_a_lane_that_its_mask_leaves_out(name: str) -> None:
    body = BODIES[name].format(mask="0x7fffffff")
    with pytest.raises(ptx_machine.Fault, match=name.replace(".", r"\.")):
        run(f"setp.lt.u32 %p0, %lane, 16;\n{body}", VALUES)


def test_masks_that_lanes_name_differently() -> None:
    """Each half names itself alone, at one instruction: two groups that never meet."""
    body = """
      setp.lt.u32 %p0, %lane, 16;
      selp.b32 %b, 0xffff, 0xffff0000, %p0;
      redux.sync.max.u32 %d, %a, %b;
    """
    out, _ = run(body, VALUES)
    assert out.tolist() == [int(VALUES[:16].max())] * 16 + [int(VALUES[16:].max())] * 16


def test_votes() -> None:
    chosen = random.Random(1)
    for bits in (0, 0xFFFFFFFF, 1, 0x80000000, chosen.getrandbits(32), chosen.getrandbits(32)):
        mine = np.array([bits >> lane & 1 for lane in range(32)], np.uint32)
        set_ = "setp.ne.u32 %p0, %a, 0;\n"
        out, _ = run(f"{set_}vote.sync.ballot.b32 %d, %p0, -1;", mine)
        assert out.tolist() == [bits] * 32
        out, _ = run(f"{set_}vote.sync.ballot.b32 %d, !%p0, -1;", mine)
        assert out.tolist() == [bits ^ 0xFFFFFFFF] * 32
        for name, truth in (
            ("all", bits == 0xFFFFFFFF),
            ("any", bits != 0),
            ("uni", bits in (0, 0xFFFFFFFF)),
        ):
            _, flags = run(f"{set_}vote.sync.{name}.pred %p, %p0, -1;", mine)
            assert flags.tolist() == [int(truth)] * 32, (name, bits)


def test_votes_of_some_lanes() -> None:
    """Who is not a member has no vote: its bit is 0, and all the others may still be all."""
    body = """
      setp.ge.u32 %p0, %lane, 8;
      setp.lt.u32 %p1, %lane, 24;
      mov.pred %p2, -1;
      @!%p0 bra AWAY;
      vote.sync.ballot.b32 %d, %p1, 0xffffff00;
      vote.sync.all.pred %p, %p0, 0xffffff00;
    AWAY:
    """
    out, flags = run(body)
    assert out.tolist() == [0] * 8 + [0x00FFFF00] * 24
    assert flags.tolist() == [0] * 8 + [1] * 24


def test_who_is_here() -> None:
    body = """
      setp.lt.u32 %p0, %lane, 5;
      @%p0 bra FEW;
      activemask.b32 %d;
      bra JOIN;
    FEW:
      activemask.b32 %d;
    JOIN:
    """
    out, _ = run(body)
    assert out.tolist() == [0x1F] * 5 + [0xFFFFFFE0] * 27


def _signed(value: int) -> int:
    return value - (1 << 32) if value >> 31 else value


REDUCED: dict[str, Callable[[list[int]], int]] = {
    "add.s32": sum,
    "add.u32": sum,
    "min.u32": min,
    "max.u32": max,
    "min.s32": lambda values: min(map(_signed, values)),
    "max.s32": lambda values: max(map(_signed, values)),
    "and.b32": lambda values: functools.reduce(operator.and_, values),
    "or.b32": lambda values: functools.reduce(operator.or_, values),
    "xor.b32": lambda values: functools.reduce(operator.xor, values),
}


@pytest.mark.parametrize("name", sorted(REDUCED))
def test_reduced(name: str) -> None:
    for values in (VALUES, VALUES | 0x10, VALUES & 0x7FFFFFFF):
        out, _ = run(f"redux.sync.{name} %d, %a, -1;", values)
        expected = REDUCED[name]([int(value) for value in values]) & 0xFFFFFFFF
        assert out.tolist() == [expected] * 32
    body = f"setp.lt.u32 %p0, %lane, 9;\n@!%p0 bra AWAY;\nredux.sync.{name} %d, %a, 511;\nAWAY:"
    out, _ = run(body, VALUES)
    expected = REDUCED[name]([int(value) for value in VALUES[:9]]) & 0xFFFFFFFF
    assert out.tolist() == [expected] * 9 + [0] * 23


def test_lanes_that_have_the_same() -> None:
    values = np.array([lane * 7 % 5 for lane in range(32)], np.uint32)
    out, _ = run("match.any.sync.b32 %d, %a, -1;", values)
    for lane in range(32):
        assert out[lane] == sum(1 << i for i in range(32) if values[i] == values[lane])
    out, flags = run("match.all.sync.b32 %d|%p, %a, -1;", values)
    assert out.tolist() == flags.tolist() == [0] * 32
    out, flags = run("match.all.sync.b32 %d|%p, %a, -1;", np.full(32, 9, np.uint32))
    assert out.tolist() == [0xFFFFFFFF] * 32
    assert flags.tolist() == [1] * 32


EXCHANGED = """
  .shared .align 4 .b8 room[128];
  mov.u32 %r1, room;
  shl.b32 %r2, %lane, 2;
  add.s32 %r2, %r1, %r2;
  xor.b32 %r3, %lane, {with};
  shl.b32 %r3, %r3, 2;
  add.s32 %r3, %r1, %r3;
  st.shared.b32 [%r2], %a;
  {barrier}
  ld.shared.b32 %d, [%r3];
"""


def test_a_barrier_of_the_warp_orders_its_lanes() -> None:
    for seed in range(3):
        out, _ = run(
            EXCHANGED.format(barrier="bar.warp.sync -1;", **{"with": 5}), VALUES, seed=seed
        )
        assert out.tolist() == VALUES[np.arange(32) ^ 5].tolist()


def test_lanes_that_do_not_wait_for_each_other_race() -> None:
    with pytest.raises(ptx_machine.Fault, match=r"ld\.shared"):
        run(EXCHANGED.format(barrier="", **{"with": 5}), VALUES)
    run(EXCHANGED.format(barrier="", **{"with": 0}), VALUES)  # of its own no lane need wait


def test_barrier_of_other_lanes_orders_nothing() -> None:
    """Two halves wait, each for itself: who then reads across them races."""
    halves = "setp.lt.u32 %p0, %lane, 16;\nselp.b32 %r5, 0xffff, 0xffff0000, %p0;\n"
    barrier = f"{halves}bar.warp.sync %r5;"
    out, _ = run(EXCHANGED.format(barrier=barrier, **{"with": 5}), VALUES)
    assert out.tolist() == VALUES[np.arange(32) ^ 5].tolist()
    with pytest.raises(ptx_machine.Fault, match=r"ld\.shared"):
        run(EXCHANGED.format(barrier=barrier, **{"with": 16}), VALUES)
