"""How the PTX interpreter moves threads: branches, loops, guards, barriers of a block, exits."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import ptx_machine
import pytest
from ptx_snippets import entry, launched

PLACE = "mad.wide.u32 %q7, %r7, 4, %out;"  # where a thread's word is: of its number, in %r7
STORE = f"mov.u32 %r7, %tid_x;\n{PLACE}\nst.global.b32 [%q7], %r0;\n"


def words(count: int) -> np.ndarray:
    """What nobody has written yet."""
    return np.full(count, 0xDDDDDDDD, np.uint32)


def run(body: str, threads: int = 32, **options: object) -> list[int]:
    """A word of each thread, which the body leaves in %r0."""
    text = entry(f"{body}\n{STORE}ret;")
    (found,) = launched(text, [words(threads)], threads=threads, **options)  # type: ignore[arg-type]
    return [int(value) for value in found]


def test_both_sides_of_a_branch() -> None:
    body = """
      and.b32 %r1, %tid_x, 1;
      setp.eq.s32 %p0, %r1, 0;
      @%p0 bra EVEN;
      mul.lo.s32 %r0, %tid_x, 10;
      bra.uni DONE;
    EVEN:
      add.s32 %r0, %tid_x, 1000;
    DONE:
      add.s32 %r0, %r0, 1;
    """
    expected = [10 * i + 1 if i % 2 else i + 1001 for i in range(70)]
    assert run(body, threads=70) == expected


def _collatz(value: int) -> int:
    steps = 0
    while value != 1:
        value = value // 2 if value % 2 == 0 else 3 * value + 1
        steps += 1
    return steps


def test_a_loop_that_each_lane_leaves_when_it_is_done() -> None:
    body = """
      add.s32 %r1, %tid_x, 1;
      mov.u32 %r0, 0;
    AGAIN:
      setp.eq.s32 %p0, %r1, 1;
      @%p0 bra DONE;
      and.b32 %r2, %r1, 1;
      setp.eq.s32 %p1, %r2, 0;
      @%p1 bra EVEN;
      mad.lo.s32 %r1, %r1, 3, 1;
      bra NEXT;
    EVEN:
      shr.u32 %r1, %r1, 1;
    NEXT:
      add.s32 %r0, %r0, 1;
      bra.uni AGAIN;
    DONE:
    """
    assert run(body, threads=96) == [_collatz(i + 1) for i in range(96)]


def test_loops_in_each_other_whose_lengths_differ() -> None:
    body = """
      mov.u32 %r0, 0;
      mov.u32 %r1, 0;
    OUTER:
      setp.gt.u32 %p0, %r1, %tid_x;
      @%p0 bra DONE;
      mov.u32 %r2, %r1;
    INNER:
      add.s32 %r0, %r0, 1;
      add.s32 %r2, %r2, -1;
      setp.ge.s32 %p1, %r2, 0;
      @%p1 bra INNER;
      add.s32 %r1, %r1, 1;
      bra.uni OUTER;
    DONE:
    """
    assert run(body) == [sum(outer + 1 for outer in range(i + 1)) for i in range(32)]


def test_lanes_meet_again_behind_a_branch() -> None:
    """What all lanes do together behind a branch finds all of them, whatever way they came."""
    body = """
      and.b32 %r1, %tid_x, 3;
      setp.eq.s32 %p0, %r1, 1;
      setp.eq.s32 %p1, %r1, 2;
      mov.u32 %r2, 7;
      @%p0 bra ONE;
      @%p1 bra TWO;
      mov.u32 %r2, 5;
      bra JOIN;
    ONE:
      mov.u32 %r2, 11;
      bra JOIN;
    TWO:
      mov.u32 %r2, 13;
    JOIN:
      shfl.sync.bfly.b32 %r3|%p2, %r2, 1, 31, -1;
      mad.lo.s32 %r0, %r2, 100, %r3;
    """
    value = {0: 5, 1: 11, 2: 13, 3: 5}
    assert run(body) == [value[i % 4] * 100 + value[(i ^ 1) % 4] for i in range(32)]


def test_guards() -> None:
    body = """
      setp.lt.u32 %p0, %tid_x, 10;
      mov.u32 %r0, 1;
      @%p0 add.s32 %r0, %r0, 100;
      @!%p0 add.s32 %r0, %r0, 200;
      mov.pred %p1, 0;
      @%p1 mov.u32 %r0, 0;
      @%p0 setp.lt.u32 %p1, %tid_x, 5;
      @%p1 add.s32 %r0, %r0, 1000;
    """
    expected = [1 + (100 if i < 10 else 200) + (1000 if i < 5 else 0) for i in range(40)]
    assert run(body, threads=40) == expected


def test_threads_that_return_early_store_nothing() -> None:
    body = """
      setp.ge.u32 %p0, %tid_x, 20;
      @%p0 ret;
      setp.eq.u32 %p1, %tid_x, 3;
      @!%p1 bra ON;
      exit;
    ON:
      mov.u32 %r0, %tid_x;
    """
    expected = [i if i < 20 and i != 3 else 0xDDDDDDDD for i in range(50)]
    assert run(body, threads=50) == expected


def test_a_branch_by_a_table() -> None:
    body = """
      and.b32 %r1, %tid_x, 3;
    WAYS: .branchtargets FIRST, SECOND, THIRD, FIRST;
      brx.idx %r1, WAYS;
    FIRST:
      mov.u32 %r0, 100;
      bra JOIN;
    SECOND:
      mov.u32 %r0, 200;
      bra JOIN;
    THIRD:
      mov.u32 %r0, 300;
    JOIN:
      add.s32 %r0, %r0, %tid_x;
    """
    assert run(body) == [(100, 200, 300, 100)[i % 4] + i for i in range(32)]


def test_where_a_thread_is() -> None:
    grid, block = (3, 2, 2), (5, 4, 3)
    each = 60
    names = ["tid.x", "tid.y", "tid.z", "ctaid.x", "ctaid.y", "ctaid.z"]
    names += ["ntid.x", "ntid.y", "ntid.z", "nctaid.x", "nctaid.y", "nctaid.z", "laneid"]
    # The place of a thread: its number in the block behind those of the blocks before.
    body = """
      .reg .b32 %n<16>;
      mov.u32 %n0, %tid.z;  mov.u32 %n1, %ntid.y;  mov.u32 %n2, %tid.y;
      mad.lo.s32 %n0, %n0, %n1, %n2;
      mov.u32 %n1, %ntid.x;  mov.u32 %n2, %tid.x;
      mad.lo.s32 %n0, %n0, %n1, %n2;
      mov.u32 %n3, %ctaid.z;  mov.u32 %n1, %nctaid.y;  mov.u32 %n2, %ctaid.y;
      mad.lo.s32 %n3, %n3, %n1, %n2;
      mov.u32 %n1, %nctaid.x;  mov.u32 %n2, %ctaid.x;
      mad.lo.s32 %n3, %n3, %n1, %n2;
      mad.lo.s32 %n0, %n3, 60, %n0;
    """
    body += f"mad.wide.u32 %q0, %n0, {4 * len(names)}, %out;\n"
    for i, name in enumerate(names):
        body += f"mov.u32 %r0, %{name};\nst.global.b32 [%q0+{4 * i}], %r0;\n"
    blocks = grid[0] * grid[1] * grid[2]
    (found,) = launched(
        entry(f"{body}ret;"), [words(blocks * each * len(names))], grid=grid, threads=block
    )
    rows = iter(found.reshape(-1, len(names)).tolist())
    for z in range(grid[2]):
        for y in range(grid[1]):
            for x in range(grid[0]):
                for number in range(each):
                    own = [number % 5, number // 5 % 4, number // 20, x, y, z]
                    assert next(rows) == [*own, *block, *grid, number % 32]


REVERSED = """
  .shared .align 4 .b8 room[1024];
  mov.u32 %r1, room;
  shl.b32 %r2, %tid_x, 2;
  add.s32 %r3, %r1, %r2;
  st.shared.b32 [%r3], %tid_x;
  {barrier}
  mov.u32 %r4, %ntid.x;
  sub.s32 %r4, %r4, %tid_x;
  add.s32 %r4, %r4, -1;
  shl.b32 %r4, %r4, 2;
  add.s32 %r4, %r1, %r4;
  ld.shared.b32 %r0, [%r4];
"""


@pytest.mark.parametrize("threads", [1, 31, 64, 100, 256])
@pytest.mark.parametrize("barrier", ["bar.sync 0;", "barrier.sync 0;", "barrier.cta.sync 0;"])
def test_a_barrier_orders_a_block(barrier: str, threads: int) -> None:
    for seed in range(3):
        found = run(REVERSED.format(barrier=barrier), threads=threads, seed=seed)
        assert found == list(range(threads))[::-1]


@pytest.mark.parametrize("threads", [64, 100])
def test_without_the_barrier_it_is_a_race(threads: int) -> None:
    with pytest.raises(ptx_machine.Fault, match=r"ld\.shared|st\.shared"):
        run(REVERSED.format(barrier=""), threads=threads)


def test_warps_may_wait_at_different_instructions() -> None:
    """A barrier counts the threads that come to any instruction of its number."""
    body = """
      setp.lt.u32 %p0, %tid_x, 32;
      @%p0 bra FIRST;
      bar.sync 0;
      mov.u32 %r0, 2;
      bra JOIN;
    FIRST:
      bar.sync 0;
      mov.u32 %r0, 1;
    JOIN:
    """
    assert run(body, threads=64) == [1] * 32 + [2] * 32


@pytest.mark.parametrize("way", ["one side waits", "both sides wait"])
def test_a_barrier_in_a_branch_that_lanes_of_a_warp_take_apart(way: str) -> None:
    other = "bar.sync 0;" if way.startswith("both") else ""
    body = f"""
      setp.lt.u32 %p0, %tid_x, 7;
      mov.u32 %r0, 0;
      @%p0 bra FEW;
      {other}
      bra JOIN;
    FEW:
      bar.sync 0;
    JOIN:
      bar.sync 0;
    """
    with pytest.raises(ptx_machine.Fault, match=r"bar\.sync.*whole warps"):
        run(body, threads=64)


def test_a_barrier_does_not_wait_for_threads_that_are_done() -> None:
    """As from sm_70 on: it is complete when all threads that have not exited are there."""
    body = """
      setp.ge.u32 %p0, %tid_x, 40;
      @%p0 exit;
      bar.sync 0;
      mov.u32 %r0, 1;
    """
    assert run(body, threads=96) == [1] * 40 + [0xDDDDDDDD] * 56


@pytest.mark.parametrize("other", ["bar.sync 1;", "bar.red.or.pred %p1, 0, %p0;"])
def test_barriers_that_do_not_belong_together(other: str) -> None:
    body = f"""
      setp.lt.u32 %p0, %tid_x, 32;
      mov.u32 %r0, 0;
      @%p0 bra FIRST;
      {other}
      bra JOIN;
    FIRST:
      bar.sync 0;
    JOIN:
    """
    with pytest.raises(ptx_machine.Fault, match="while others wait at line"):
        run(body, threads=64)


@pytest.mark.parametrize(("name", "truth"), [("or", any), ("and", all)])
def test_a_barrier_that_asks_all_threads(name: str, truth: object) -> None:
    assert callable(truth)
    for chosen in ([], [5], list(range(96)), list(range(95))):
        mask = [1 if i in chosen else 0 for i in range(96)]
        body = f"""
          mad.wide.u32 %q0, %tid_x, 4, %given;
          ld.global.b32 %r1, [%q0];
          setp.ne.b32 %p0, %r1, 0;
          bar.red.{name}.pred %p1, 0, %p0;
          bar.red.{name}.pred %p2, 0, !%p0;
          selp.b32 %r0, 1, 0, %p1;
          selp.b32 %r2, 2, 0, %p2;
          or.b32 %r0, %r0, %r2;
        """
        text = entry(f"{body}{STORE}ret;", ("given", "out"))
        given = np.array(mask, np.uint32)
        found = launched(text, [given, words(96)], threads=96)[1]
        expected = int(truth(mask)) + 2 * int(truth(1 - bit for bit in mask))
        assert found.tolist() == [expected] * 96


TICKETS = """
  mov.u32 %r1, %tid.x;
  mov.u32 %r2, %ctaid.x;
  shr.u32 %r3, %r1, 5;
  mad.lo.s32 %r3, %r2, 4, %r3;
  setp.ne.u32 %p0, %lane, 0;
  @%p0 ret;
  mov.u32 %r4, 1;
  atom.global.add.u32 %r0, [%counter], %r4;
  mad.wide.u32 %q0, %r3, 4, %out;
  st.global.b32 [%q0], %r0;
  ret;
"""


def _order(seed: int) -> Sequence[int]:
    counter = np.zeros(1, np.uint32)
    text = entry(TICKETS, ("counter", "out"))
    found = launched(text, [counter, words(12)], grid=(3,), threads=128, seed=seed)
    assert int(found[0][0]) == 12
    assert sorted(found[1].tolist()) == list(range(12))
    return tuple(found[1].tolist())


def test_the_order_of_warps_is_the_seeds() -> None:
    orders = [_order(seed) for seed in range(8)]
    assert len(set(orders)) > 3
    assert _order(5) == orders[5]


def test_barriers_are_counted() -> None:
    text = entry("bar.sync 0;\nbar.sync 0;\nret;")
    (kernel,) = ptx_machine.load(text).values()
    with ptx_machine.memory():
        counters = ptx_machine.launch(kernel, (3,), 64, bytes(8))
    assert counters.barriers == 6


def test_many_ways_at_random() -> None:
    """A walk through a random graph of additions, each lane its own way, against Python's walk."""
    chosen = random.Random(0)
    nodes = 24
    steps = [
        (chosen.randrange(1, 1000), chosen.randrange(nodes), chosen.randrange(nodes))
        for _ in range(nodes)
    ]
    body = "mov.u32 %r0, %tid_x;\nmov.u32 %r1, 60;\nbra N0;\n"
    for i, (number, odd, even) in enumerate(steps):
        body += f"""
        N{i}:
          mad.lo.s32 %r0, %r0, 5, {number};
          add.s32 %r1, %r1, -1;
          setp.eq.s32 %p0, %r1, 0;
          @%p0 bra DONE;
          shr.u32 %r2, %r0, 7;
          and.b32 %r2, %r2, 1;
          setp.eq.s32 %p1, %r2, 1;
          @%p1 bra N{odd};
          bra.uni N{even};
        """
    found = run(f"{body}\nDONE:", threads=128)
    for start, result in enumerate(found):
        value, node = start, 0
        for _ in range(60):
            number, odd, even = steps[node]
            value = (value * 5 + number) & 0xFFFFFFFF
            node = odd if value >> 7 & 1 else even
        assert result == value, start
