"""Accesses in no order: what the PTX interpreter takes for a race, and what not."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence

import numpy as np
import ptx_machine
import pytest
import torch
from ptx_snippets import entry, launched

STORAGE = (
    "  .reg .b32 %a<8>;\n  .reg .b64 %w<4>;\n  .reg .b16 %n<4>;\n"
    "  .shared .align 16 .b8 kept[2048];\n"
)
# %r0 is the shared address of a thread's own word, %r1 that of the thread whose number has the
# lowest bit flipped, %r2 that of the one a warp further; %w0 is the address of its own global word.
PLACES = """\
shl.b32 %r0, %tid_x, 2;
xor.b32 %r1, %r0, 4;
xor.b32 %r2, %r0, 128;
mov.b32 %r7, kept;
add.u32 %r0, %r0, %r7;
add.u32 %r1, %r1, %r7;
add.u32 %r2, %r2, %r7;
mul.wide.u32 %w0, %tid_x, 4;
add.s64 %w0, %w0, %out;
setp.eq.u32 %p0, %tid_x, 0;
setp.lt.u32 %p1, %tid_x, 32;
setp.eq.u32 %p2, %lane, 0;
mov.b32 %a0, 5;
mov.b32 %a1, 6;
"""
WORDS = np.zeros(128, np.uint32)
SEEDS = range(4)
WORDS_OF = {"read": r"\breads?\b", "write": r"\b(writes|wrote)\b", "atomic": "by an atomic"}


def run(body: str, *, threads: int = 64, blocks: int = 1) -> np.ndarray:
    """The words that are left, the same whatever the order of warps and blocks."""
    text = entry(f"{PLACES}{body}\nret;", registers=STORAGE)
    found = [launched(text, [WORDS], (blocks,), threads, seed=seed)[0] for seed in SEEDS]
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    return found[0]


def race(
    body: str, *, threads: int = 64, blocks: int = 1, seeds: Sequence[int] = SEEDS
) -> list[str]:
    """What is said of it; found in every order of warps and blocks."""
    text = entry(f"{PLACES}{body}\nret;", registers=STORAGE)
    said = []
    for seed in seeds:
        with pytest.raises(ptx_machine.Fault) as caught:
            launched(text, [WORDS], (blocks,), threads, seed=seed)
        said.append(str(caught.value))
    return said


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("st.shared.b32 [%r0], %a0;", "ld.shared.b32 %a2, [%r2];", ("read", "write")),
        ("ld.shared.b32 %a2, [%r2];", "st.shared.b32 [%r0], %a0;", ("read", "write")),
        ("@%p1 st.shared.b32 [%r0], %a0;", "@!%p1 st.shared.b32 [%r2], %a1;", ("write",)),
        ("ld.shared.b32 %a2, [%r2];", "red.shared.add.u32 [%r0], %a0;", ("atomic", "read")),
        ("red.shared.add.u32 [%r0], %a0;", "ld.shared.b32 %a2, [%r2];", ("atomic", "read")),
        ("st.shared.b32 [%r0], %a0;", "red.shared.add.u32 [%r2], %a0;", ("atomic", "write")),
        ("st.shared.v2.b16 [%r0], {%n0, %n1};", "ld.shared.b8 %n2, [%r2+3];", ("read", "write")),
        ("st.shared.b8 [%r0+2], %n0;", "ld.shared.b32 %a2, [%r2];", ("read", "write")),
        ("st.global.b32 [%w0], %a0;", "ld.global.b32 %a2, [%w1];", ("read", "write")),
        ("ld.global.b32 %a2, [%w1];", "st.global.b32 [%w0], %a0;", ("read", "write")),
        ("st.b32 [%w0], %a0;", "red.add.u32 [%w1], %a0;", ("atomic", "write")),
    ],
)
def test_a_barrier_of_the_block_orders_its_warps(
    first: str, second: str, words: tuple[str, ...]
) -> None:
    place = "xor.b64 %w1, %w0, 128;\n"
    run(f"{place}{first}\nbar.sync 0;\n{second}")
    said = race(f"{place}{first}\n{second}")
    # Which of the two a run meets first is the seed's choice.
    for each in said:
        assert "races: it " in each
        assert ", which thread " in each
        for word in words:
            assert re.search(WORDS_OF[word], each)
    # Barriers of warps order nothing between them.
    race(f"{place}{first}\nbar.warp.sync -1;\n{second}")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("st.shared.b32 [%r0], %a0;", "ld.shared.b32 %a2, [%r1];"),
        ("ld.shared.b32 %a2, [%r1];", "st.shared.b32 [%r0], %a0;"),
        ("@%p2 st.shared.b32 [%r0], %a0;", "@!%p2 st.shared.b32 [kept], %a1;"),
        ("@%p2 st.global.b32 [%out], %a0;", "ld.global.b32 %a2, [%out];"),
        ("ld.shared.b32 %a2, [%r1];", "red.shared.add.u32 [%r0], %a0;"),
    ],
)
def test_a_barrier_of_the_warp_orders_its_lanes(first: str, second: str) -> None:
    said = race(f"{first}\n{second}", threads=32)
    assert all("have passed no barrier in between" in each for each in said)
    run(f"{first}\nbar.warp.sync -1;\n{second}", threads=32)
    run(f"{first}\nbar.sync 0;\n{second}", threads=32)


def test_a_barrier_of_some_lanes_orders_no_others() -> None:
    """Lanes 0 to 15 have passed a barrier more than lane 20, which it tells nothing."""
    met = "setp.lt.u32 %p4, %lane, 16;\n@%p4 bar.warp.sync 0xffff;\n"
    write = "@%p0 st.shared.b32 [kept], %a0;\n"
    reads = "setp.eq.u32 %p5, %lane, {lane};\n@%p5 ld.shared.b32 %a2, [kept];\n"
    run(f"{write}{met}{reads.format(lane=9)}", threads=32)
    race(f"{write}{met}{reads.format(lane=20)}", threads=32)
    race(f"{met}{write}{reads.format(lane=20)}", threads=32)
    race(f"{met}{reads.format(lane=20)}{write}", threads=32)


def test_a_fault_names_instruction_bytes_and_both_threads() -> None:
    body = "setp.eq.u32 %p3, %tid_x, 7;\n@%p3 st.shared.b16 [kept+36], %n0;\n"
    body += "setp.eq.u32 %p4, %tid_x, 3;\n@%p4 ld.shared.b32 %a2, [kept+36];"
    for said in race(body, threads=32):
        assert "thread 3 (" in said
        assert "@%p4 ld.shared.b32 %a2, [kept+36]" in said
        assert "reads bytes 36 to 37 of shared memory, which thread 7 wrote" in said


def test_a_thread_races_not_with_itself() -> None:
    body = "st.shared.b32 [%r0], %a0;\nld.shared.b32 %a2, [%r0];\nst.shared.b32 [%r0], %a2;\n"
    body += "red.shared.add.u32 [%r0], 2;\nld.shared.b32 %a3, [%r0];\nst.global.b32 [%w0], %a3;\n"
    assert (run(f"{body}ld.global.b32 %a4, [%w0];\nst.global.b32 [%w0], %a4;")[:64] == 7).all()


def test_readers_are_all_remembered() -> None:
    # Any of 64 threads that read may be the one that a write of thread 0 or 63 races with.
    for writer in (0, 31, 32, 63):
        only = f"setp.eq.u32 %p3, %tid_x, {writer};\n@%p3 st.shared.b32 [kept], %a0;"
        for reader in (0, 1, 31, 32, 62, 63):
            one = f"setp.eq.u32 %p4, %tid_x, {reader};\n@%p4 ld.shared.b32 %a2, [kept];\n"
            own = f"setp.eq.u32 %p5, %tid_x, {writer};\n@%p5 ld.shared.b32 %a2, [kept];\n"
            for reads in (one + own, own + one):
                if reader == writer:
                    run(reads + only)
                else:
                    race(reads + only)
                    run(f"{reads}bar.sync 0;\n{only}")


def test_reads_before_a_barrier_of_the_warp_still_race_with_other_warps() -> None:
    body = "@%p1 ld.shared.b32 %a2, [kept];\nbar.warp.sync -1;\n@%p0 ld.shared.b32 %a2, [kept];\n"
    run(f"{body}bar.warp.sync -1;\nsetp.eq.u32 %p3, %tid_x, 9;\n@%p3 st.shared.b32 [kept], %a0;")
    race(f"{body}setp.eq.u32 %p3, %tid_x, 40;\n@%p3 st.shared.b32 [kept], %a0;")
    # A reader of another warp is kept among many of one's own.
    body = "@%p1 ld.shared.b32 %a2, [kept];\nsetp.eq.u32 %p4, %tid_x, 40;\n"
    only = "bar.warp.sync -1;\nsetp.eq.u32 %p3, %tid_x, 9;\n@%p3 st.shared.b32 [kept], %a0;"
    run(f"{body}{only}")
    # Long enough that in some orders the other warp reads between this one's reads and its write.
    wait = "add.u32 %a2, %a2, 1;\n" * 200
    race(f"{body}@%p4 ld.shared.b32 %a2, [kept];\n{wait}{only}", seeds=range(24))


def test_neighbouring_bytes_are_no_race() -> None:
    run("shl.b32 %r3, %tid_x, 0;\nadd.u32 %r3, %r3, %r7;\nst.shared.b8 [%r3], %n0;")
    run("st.shared.b16 [%r0], %n0;\nxor.b32 %r3, %r0, 130;\nld.shared.b16 %n1, [%r3];")
    # Words that were one granule while only vectors had touched them.
    wide = "shl.b32 %r3, %tid_x, 4;\nadd.u32 %r3, %r3, %r7;\n"
    wide += "st.shared.v4.b32 [%r3], {%a0, %a0, %a0, %a0};\nbar.sync 0;\n"
    run(f"{wide}st.shared.b32 [%r0], %a0;")
    race(wide.replace("bar.sync 0;\n", "") + "ld.shared.b16 %n1, [%r0];")


def test_threads_of_a_block_may_write_the_same_value() -> None:
    run("st.shared.b32 [kept], %a0;", threads=32)
    run("st.shared.b32 [kept], %a0;", threads=64)
    run("st.global.v2.b32 [%out], {%a0, %a1};", threads=64)
    run("@%p2 st.shared.b32 [kept], %a0;\n@!%p2 st.shared.b32 [kept], %a0;", threads=32)
    # Whoever reads it without a barrier still reads what another wrote.
    race("st.shared.b32 [kept], %a0;\nld.shared.b32 %a2, [kept];", threads=32)
    # Nor is it the same when only some of the bytes are, or an atomic or a copy writes it.
    race("@%p2 st.shared.b32 [kept], %a0;\n@!%p2 st.shared.b16 [kept], %a1;", threads=32)
    race("@%p2 st.shared.b32 [kept], %a0;\n@!%p2 red.shared.max.u32 [kept], %a0;", threads=32)
    race("st.shared.b32 [kept], %a0;\nst.shared.b32 [kept], %a1;", threads=32)


def test_lanes_of_one_store_that_differ() -> None:
    different = "st.shared.b32 [kept], %lane;"
    assert all("wrote" in each for each in race(different, threads=32))
    with ptx_machine.open_stores():
        run(different, threads=32)
        # Of one store alone: not of two, nor of two warps.
        race("@%p2 st.shared.b32 [kept], %lane;\n@!%p2 st.shared.b32 [kept], %lane;", threads=32)
        race("st.shared.b32 [kept], %tid_x;", threads=64)
    race(different, threads=32)


def test_atomics_are_in_any_order() -> None:
    assert run("red.shared.add.u32 [kept], 1;\nred.global.add.u32 [%out], 1;", blocks=3)[0] == 192
    race("red.shared.add.u32 [kept], 1;\n@%p0 ld.shared.b32 %a2, [kept];")
    race("@%p0 st.shared.b32 [kept], 1;\nred.shared.add.u32 [kept], 1;")
    # Of the many that changed it, one is another thread.
    race("@%p1 red.shared.add.u32 [kept], 1;\n@%p0 st.shared.b32 [kept], 1;")


@pytest.mark.parametrize(
    "body",
    [
        "@%p0 st.global.b32 [%out], %a0;",
        "mov.u32 %r3, %ctaid.x;\nsetp.eq.u32 %p3, %r3, 1;\n@%p3 st.global.b32 [%w0], %a0;\n"
        "bar.sync 0;\n@!%p3 ld.global.b32 %a2, [%w0];",
        "ld.global.b32 %a2, [%out];\nbar.sync 0;\nmov.u32 %r3, %ctaid.x;\n"
        "setp.eq.and.u32 %p3, %r3, 1, %p0;\n@%p3 st.global.b32 [%out], %a0;",
        "@%p0 red.global.add.u32 [%out], 1;\nbar.sync 0;\nld.global.b32 %a2, [%out];",
        "mov.u32 %r3, %ctaid.x;\nsetp.eq.u32 %p3, %r3, 1;\n@%p3 st.global.b8 [%out+5], %n0;\n"
        "@!%p3 ld.global.v4.b32 {%a2, %a3, %a4, %a5}, [%out];",
    ],
    ids=["writes", "write-read", "read-write", "atomic-read", "bytes"],
)
def test_blocks_of_a_grid_are_in_no_order(body: str) -> None:
    for said in race(body, threads=32, blocks=3):
        assert "blocks of a grid are in no order" in said
        assert " of block " in said
    if "setp.eq" not in body:
        run(body, threads=32, blocks=1)


def test_blocks_share_what_they_read_and_keep_what_they_wrote() -> None:
    own = "mov.u32 %r3, %ctaid.x;\nmul.wide.u32 %w1, %r3, 128;\nadd.s64 %w1, %w1, %w0;\n"
    body = "st.shared.b32 [%r0], %a0;\nbar.sync 0;\nld.shared.b32 %a2, [%r2];\n"
    found = run(
        f"{own}st.global.b32 [%w1], %a1;\n{body}ld.global.b32 %a2, [%w1];", blocks=3, threads=32
    )
    assert (found[:96] == 6).all()


def test_launches_are_in_order() -> None:
    text = entry(
        f"{PLACES}ld.global.b32 %a2, [%w0];\nadd.u32 %a2, %a2, 1;\n"
        "@%p0 st.global.b32 [%out], %a2;\nret;",
        registers=STORAGE,
    )
    (kernel,) = ptx_machine.load(text).values()
    with ptx_machine.memory():
        words = torch.zeros(64, dtype=torch.int32)
        for _ in range(3):
            ptx_machine.launch(kernel, (1,), 64, struct.pack("<Q", words.data_ptr()))
        assert words[0] == 3


# --- cp.async ---

# Each thread copies the 16 bytes at 16 times its number; %r3 is where, %r4 where its neighbour's
# are, %r5 those of the thread a warp further.
COPY_PLACES = """\
shl.b32 %r3, %tid_x, 4;
mul.wide.u32 %w1, %r3, 1;
add.s64 %w1, %w1, %out;
xor.b32 %r4, %r3, 16;
xor.b32 %r5, %r3, 512;
add.u32 %r3, %r3, %r7;
add.u32 %r4, %r4, %r7;
add.u32 %r5, %r5, %r7;
"""
COPY = f"{COPY_PLACES}cp.async.cg.shared.global [%r3], [%w1], 16;\n"
COMMIT = "cp.async.commit_group;\n"
WAIT = "cp.async.wait_group 0;\n"
READ_OTHER = "ld.shared.b32 %a2, [%r5];\n"


def copies(body: str, seed: int = 0) -> None:
    text = entry(f"{PLACES}{body}ret;", registers=STORAGE)
    launched(text, [np.arange(512, dtype=np.uint32)], (2,), 64, seed=seed)


def copy_fault(body: str) -> str:
    for seed in SEEDS:
        with pytest.raises(ptx_machine.Fault) as caught:
            copies(body, seed)
    return str(caught.value)


@pytest.mark.parametrize("wait", [COMMIT + WAIT, "cp.async.wait_all;\n"])
def test_a_copy_is_there_after_a_wait_and_a_barrier(wait: str) -> None:
    for seed in SEEDS:
        copies(f"{COPY}{wait}bar.sync 0;\n{READ_OTHER}", seed)
        copies(f"{COPY}{wait}ld.shared.b32 %a2, [%r3];\n", seed)
    assert "races" in copy_fault(f"{COPY}{wait}{READ_OTHER}")
    under_way = "is under way: cp.async was issued and not waited for"
    assert under_way in copy_fault(f"{COPY}{COMMIT}bar.sync 0;\n{READ_OTHER}{wait}")
    assert under_way in copy_fault(f"{COPY}{COMMIT}ld.shared.b32 %a2, [%r3];\n{wait}")
    assert under_way in copy_fault(f"{COPY}{COMMIT}st.shared.b8 [%r3+15], %n0;\n{wait}")
    assert under_way in copy_fault(f"{COPY}{COPY}{wait}")


def test_a_wait_lets_the_latest_groups_go_on() -> None:
    second = "add.u32 %r6, %r3, 1024;\ncp.async.cg.shared.global [%r6], [%w1], 16;\n"
    both = f"{COPY}{COMMIT}{second}{COMMIT}"
    copies(f"{both}cp.async.wait_group 1;\nld.shared.b32 %a2, [%r3];\n")
    copies(f"{both}cp.async.wait_group 1;\nbar.sync 0;\n{READ_OTHER}")
    copies(f"{both}cp.async.wait_group 0;\nld.shared.b32 %a2, [%r6];\n")
    assert "under way" in copy_fault(f"{both}cp.async.wait_group 1;\nld.shared.b32 %a2, [%r6];\n")
    assert "under way" in copy_fault(f"{both}cp.async.wait_group 2;\nld.shared.b32 %a2, [%r3];\n")
    # What is in no group yet is not waited for; an empty group counts as one.
    assert "under way" in copy_fault(f"{COPY}{WAIT}ld.shared.b32 %a2, [%r3];\n")
    copies(f"{COPY}{COMMIT}{COMMIT}cp.async.wait_group 1;\nld.shared.b32 %a2, [%r3];\n")


def test_a_copy_races_with_who_still_reads_or_writes() -> None:
    for touch in (READ_OTHER, "st.shared.b32 [%r5], %a0;\n", "red.shared.add.u32 [%r5], 1;\n"):
        before = COPY_PLACES + touch
        copies(f"{before}bar.sync 0;\n{COPY}{COMMIT}{WAIT}")
        copy_fault(f"{before}{COPY}{COMMIT}{WAIT}")


def test_a_copy_s_source_must_stay_as_it_is() -> None:
    change = "st.global.b32 [%w1], %a0;\n"
    only = "mov.u32 %r6, %ctaid.x;\nsetp.ne.u32 %p3, %r6, 0;\n@%p3 ret;\n"
    copies(f"{only}{COPY}{COMMIT}{WAIT}{change}")
    assert "a copy whose source has changed" in copy_fault(f"{only}{COPY}{COMMIT}{change}{WAIT}")
    assert "wrote" in copy_fault(f"{only}xor.b64 %w2, %w0, 128;\nst.global.b32 [%w2], %a0;\n{COPY}")


def test_a_copy_that_nobody_reads_may_be_under_way_at_the_end() -> None:
    copies(COPY)
    copies(COPY + COMMIT)
    # Nor does it stay under way in the block that comes next.
    copies(f"{COPY_PLACES}st.shared.b32 [%r3], %a0;\n{COPY[len(COPY_PLACES) :]}")


@pytest.mark.parametrize("size", [4, 8, 16])
@pytest.mark.parametrize("how", ["all", "some", "ignored"])
def test_what_a_copy_brings(size: int, how: str) -> None:
    """Zeros where it reads less than it writes; a source of which it reads nothing may be none."""
    source = np.random.default_rng(size).integers(0, 256, 32 * size, dtype=np.uint8)
    last = {"all": "", "some": ", %r5", "ignored": ", %p3"}[how]
    kind = "cg" if size == 16 else "ca"
    body = (
        f"mul.lo.u32 %r3, %lane, {size};\nmul.wide.u32 %w1, %r3, 1;\nadd.s64 %w2, %w1, %out;\n"
        f"add.s64 %w1, %w1, %source;\nadd.u32 %r3, %r3, %r7;\nrem.u32 %r5, %lane, {size + 1};\n"
        "setp.lt.u32 %p3, %lane, 9;\nsetp.eq.u32 %p4, %r5, 0;\n"
        + ("@%p4 mov.u64 %w1, 0;\n" if how == "some" else "")
        + ("@%p3 mov.u64 %w1, 0;\n" if how == "ignored" else "")
        + f"cp.async.{kind}.shared.global.L2::128B [%r3], [%w1], {size}{last};\n"
        + "cp.async.wait_all;\n"
        + "".join(
            f"ld.shared.b8 %n0, [%r3+{i}];\nst.global.b8 [%w2+{i}], %n0;\n" for i in range(size)
        )
    )
    text = entry(f"mov.b32 %r7, kept;\n{body}ret;", ("source", "out"), STORAGE)
    _, out = launched(text, [source, np.full_like(source, 77)])
    rows = source.reshape(32, size).copy()
    for lane, row in enumerate(rows):
        read = {"all": size, "some": lane % (size + 1), "ignored": 0 if lane < 9 else size}[how]
        row[read:] = 0
    np.testing.assert_array_equal(out.reshape(32, size), rows)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("add.u32 %r3, %r3, 8;\n", "not a multiple of 16"),
        ("add.s64 %w1, %w1, 8;\n", "not a multiple of 16"),
        ("add.s64 %w1, %w1, 2048;\n", "out of bounds"),
        ("add.u32 %r3, %r3, 2048;\n", "out of bounds"),
    ],
)
def test_a_copy_s_bounds_and_alignment(change: str, said: str) -> None:
    body = f"{COPY_PLACES}{change}{COPY[len(COPY_PLACES) :]}"
    assert said in copy_fault(body)
    assert "reads 17 bytes" in copy_fault(COPY.replace("], 16;", "], 16, 17;"))
