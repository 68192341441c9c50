"""What a GPU would not tell of products of a warpgroup: each ends a launch with a fault.

A product is under way until it is waited for, and reads shared memory through a proxy of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import ptx_machine
import pytest
from ptx_warpgroup import AT_B, DONE, READY, kernel, run
from test_ptx_warpgroup import FENCE, FORMS, prepared

FORM = FORMS["registers-rows"]
MEMORY, D, A, DESCRIPTORS = prepared(FORM)
PRODUCT = FORM.instruction
WIDER = PRODUCT.replace("n8", "n16").replace("%d3}", "%d3, %e0, %e1, %e2, %e3}")
COMMIT, WAIT = "wgmma.commit_group.sync.aligned;\n", "wgmma.wait_group.sync.aligned 0;\n"
OPERAND = f"  add.u32 %r5, %at, {AT_B};\n"
"""%r5 is the address of B's first word."""
SEEDS = range(3)


def text_of(body: str, threads: int = 128, ready: str = READY) -> str:
    more = ".reg .b32 %e<8>; .reg .b64 %other; mov.pred %p1, -1; setp.eq.u32 %p2, %tid_x, 0;\n"
    more += "".join(f"mov.b32 %e{i}, 0;\n" for i in range(8)) + OPERAND
    return kernel(more + ready + body, len(D), DESCRIPTORS, threads)


def launch(
    body: str, *, warpgroups: int = 1, ready: str = READY, seeds: Iterable[int] = range(3)
) -> list[np.ndarray]:
    """D's registers, of each order of warps; two warpgroups have the same operands."""
    text = text_of(body, 128 * warpgroups, ready)
    if warpgroups == 2:  # the second fills nothing
        text = text.replace("MORE:", "setp.ge.u32 %p3, %tid_x, 128;\n@%p3 bra FILLED;\nMORE:")
        text = text.replace("@%p0 bra MORE;", "@%p0 bra MORE;\nFILLED:")
    d, a = (np.concatenate([each] * warpgroups, axis=1) for each in (D, A))
    return [run(text, MEMORY, d, a, 128 * warpgroups, seed) for seed in seeds]


UNDER_WAY, UNFENCED = "issued and not waited for", "no fence.proxy.async is in between"
REGISTERS, MEETING = "since the last wgmma.fence", "which never come here"
RACE = "races: it"

# Bodies, and what is said of them. `ready` is what comes before; default is as it should be.
FAULTS: dict[str, tuple[str, str]] = {
    "sums-read-before-wait": (
        f"{FENCE}{PRODUCT}{COMMIT}add.f32 %e0, %d1, %d1;\n{WAIT}", f"an accumulator.*{UNDER_WAY}"
    ),
    "sums-moved-before-wait": (f"{FENCE}{PRODUCT}{COMMIT}mov.b32 %e0, %d1;\n{WAIT}", UNDER_WAY),
    "sums-written-before-wait": (f"{FENCE}{PRODUCT}{COMMIT}mov.b32 %d2, 0;\n{WAIT}", UNDER_WAY),
    "sums-stored-before-commit": (
        f"{FENCE}{PRODUCT}st.shared.b32 [%at], %d0;\n{COMMIT}{WAIT}", UNDER_WAY
    ),
    "wait-one-too-late": (
        f"{FENCE}{PRODUCT}{COMMIT}wgmma.wait_group.sync.aligned 1;\nmov.b32 %e0, %d0;\n{WAIT}",
        UNDER_WAY,
    ),
    "wait-without-commit": (f"{FENCE}{PRODUCT}{WAIT}mov.b32 %e0, %d0;\n{COMMIT}", UNDER_WAY),
    "fragment-written-before-wait": (
        f"{FENCE}{PRODUCT}{COMMIT}mov.b32 %a1, 0;\n{WAIT}", f"a fragment.*{UNDER_WAY}"
    ),
    "operand-written-before-wait": (
        f"{FENCE}{PRODUCT}{COMMIT}@%p2 st.shared.b32 [%r5], %e0;\n{WAIT}",
        f"which a product reads.*{UNDER_WAY}",
    ),
    "operand-copied-into-before-wait": (
        f"{FENCE}{PRODUCT}{COMMIT}@%p2 cp.async.ca.shared.global [%r5], [%memory], 4;\n{WAIT}"
        "cp.async.wait_all;\n",
        f"which a product reads.*{UNDER_WAY}",
    ),
    "operand-changed-by-an-atomic-before-wait": (
        f"{FENCE}{PRODUCT}{COMMIT}@%p2 red.shared.add.u32 [%r5], 1;\n{WAIT}",
        f"which a product reads.*{UNDER_WAY}",
    ),
    "operand-written-without-barrier": (
        f"{FENCE}{PRODUCT}{DONE}@%p2 st.shared.b32 [%r5], %e0;\n", f"{RACE}|{UNDER_WAY}"
    ),
    "never-waited": (f"{FENCE}{PRODUCT}{COMMIT}ret;\n", "ends while a product is under way"),
    "no-fence": (f"{PRODUCT}{DONE}", "no wgmma.fence"),
    "sums-written-after-fence": (f"{FENCE}mov.b32 %d3, 0;\n{PRODUCT}{DONE}", REGISTERS),
    "fragment-written-after-fence": (f"{FENCE}mov.b32 %a2, 0;\n{PRODUCT}{DONE}", REGISTERS),
    "sums-read-between-products": (
        f"{FENCE}{PRODUCT}{DONE}mov.b32 %e0, %d0;\n{PRODUCT}{DONE}", REGISTERS
    ),
    "sums-of-another-shape": (f"{FENCE}{PRODUCT}{WIDER}{DONE}", "another product has"),
    "sums-that-are-a-fragment": (
        f"{FENCE}{PRODUCT}{PRODUCT.replace('%d0', '%a0')}{DONE}", "another product has"
    ),
    "fragment-that-is-a-sum": (
        f"{FENCE}{PRODUCT}{PRODUCT.replace('%a0', '%d0')}{DONE}", "another product has"
    ),
    "a-warp-stays-away": (
        f"{FENCE}setp.ge.u32 %p3, %tid_x, 96;\n@%p3 bra AROUND;\n{PRODUCT}{DONE}AROUND:\n"
        "bar.sync 0;\n",
        MEETING,
    ),
    "a-warp-ends": (f"setp.ge.u32 %p3, %tid_x, 96;\n@%p3 ret;\n{FENCE}{PRODUCT}{DONE}", MEETING),
    "a-lane-ends": (f"@%p2 ret;\n{FENCE}{PRODUCT}{DONE}", "is not run by all threads"),
    "a-warp-has-another": (
        f"{FENCE}setp.ge.u32 %p3, %tid_x, 96;\n@%p3 bra OTHER;\n{PRODUCT}bra.uni BOTH;\n"
        f"OTHER:\n{PRODUCT}BOTH:\n{DONE}",
        MEETING,
    ),
    "a-lane-goes-around": (
        f"{FENCE}@%p2 bra AROUND;\n{PRODUCT}AROUND:\n{DONE}", "which never come here"
    ),
    "another-descriptor": (
        f"selp.b64 %other, 8, 0, %p2;\nadd.s64 %of_b, %of_b, %other;\n{FENCE}{PRODUCT}{DONE}",
        "has another descriptor than others",
    ),
    "another-predicate": (f"not.pred %p1, %p2;\n{FENCE}{PRODUCT}{DONE}", "has another predicate"),
    "base-offset": (
        f"add.s64 %of_b, %of_b, {1 << 49};\n{FENCE}{PRODUCT}{DONE}", "a base offset"
    ),
    "off-its-pattern": (f"add.s64 %of_b, %of_b, 8;\n{FENCE}{PRODUCT}{DONE}", "pattern of its"),
    "out-of-bounds": (
        f"add.s64 %of_b, %of_b, {0xB000 >> 4};\n{FENCE}{PRODUCT}{DONE}", "goes out of bounds"
    ),
    "copy-under-way": (
        f"bar.sync 0;\n@%p2 cp.async.ca.shared.global [%r5], [%memory], 4;\n{READY}"
        f"{FENCE}{PRODUCT}{DONE}cp.async.wait_all;\n",
        "where a copy of",
    ),
    "copy-after-fence": (
        f"bar.sync 0;\n@%p2 cp.async.ca.shared.global [%r5], [%memory], 4;\n"
        f"fence.proxy.async.shared::cta;\ncp.async.wait_all;\nbar.sync 0;\n{FENCE}{PRODUCT}{DONE}",
        UNFENCED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_fault(name: str) -> None:
    body, said = FAULTS[name]
    text = text_of(body)
    for seed in SEEDS:
        with pytest.raises(ptx_machine.Fault, match=said):
            run(text, MEMORY, D, A, seed=seed)


SOME = "setp.lt.u32 %p3, %tid_x, 40;\n"
PROXY = "fence.proxy.async.shared::cta;\n"
# What is between the writes of the first warpgroup and the product, and whether it is enough.
ORDERS = {
    "nothing": ("", False, RACE),
    "a-barrier": ("bar.sync 0;\n", False, UNFENCED),
    "a-fence": (PROXY, False, RACE),
    "writers-then-barrier": (f"{PROXY}bar.sync 0;\n", True, ""),
    "barrier-then-readers": (f"bar.sync 0;\n{PROXY}", True, ""),
    "barrier-then-some-readers": (f"bar.sync 0;\n{SOME}@%p3 {PROXY}", False, UNFENCED),
    "some-writers-then-barrier": (f"{SOME}@%p3 {PROXY}bar.sync 0;\n", False, UNFENCED),
    "a-second-barrier": (f"bar.sync 0;\n{PROXY}bar.sync 0;\n", True, ""),
}


@pytest.mark.parametrize("name", ORDERS)
def test_what_was_written_is_there_behind_a_fence_of_proxies(name: str) -> None:
    between, is_enough, said = ORDERS[name]
    body = f"{FENCE}{PRODUCT}{DONE}"
    if is_enough:
        launch(body, ready=between)
        return
    with pytest.raises(ptx_machine.Fault, match=said):
        launch(body, ready=between)


# A thread that runs it comes much later than one that does not.
LATER = (
    "mov.b32 %r6, 0;\nLATER:\nadd.u32 %r6, %r6, 1;\nsetp.lt.u32 %p4, %r6, 2000;\n@%p4 bra LATER;\n"
)


@pytest.mark.parametrize(
    ("order", "is_enough"),
    [
        (("fence", "bar.sync 0;\n"), True),
        (("bar.sync 0;\n", "fence"), False),
        (("bar.sync 0;\n", "fence", "fence"), False),
        (("bar.sync 0;\n", "fence", "bar.sync 0;\n"), True),
    ],
)
def test_a_fence_of_the_writers_alone_comes_before_a_barrier(
    order: tuple[str, ...], is_enough: bool
) -> None:
    """The first warpgroup wrote, the second has the product, much later."""
    ready = "".join(f"@!%p3 {PROXY}" if each == "fence" else each for each in order)
    body = f"{FENCE}@!%p3 bra AROUND;\n{LATER}{PRODUCT}{DONE}AROUND:\n"
    for seed in SEEDS:
        if is_enough:
            launch(body, warpgroups=2, ready=ready, seeds=[seed])
            continue
        with pytest.raises(ptx_machine.Fault, match=UNFENCED):
            launch(body, warpgroups=2, ready=ready, seeds=[seed])


def test_a_product_reads_until_it_is_waited_for() -> None:
    """The first warpgroup waits behind a barrier, and the second writes behind it, much later."""
    body = (
        f"{FENCE}@%p3 bra ISSUED;\n{PRODUCT}{COMMIT}ISSUED:\nbar.sync 0;\n@%p3 bra WAITED;\n"
        f"{WAIT}bra.uni END;\nWAITED:\n{LATER}setp.eq.u32 %p2, %tid_x, 128;\n"
        "@%p2 st.shared.b32 [%r5], %e0;\nEND:\n"
    )
    said = []
    for seed in SEEDS:
        with pytest.raises(ptx_machine.Fault, match=f"{RACE}|{UNDER_WAY}") as caught:
            launch(body, warpgroups=2, seeds=[seed])
        said.append(str(caught.value))
    assert any(RACE in each for each in said)
    behind = body.replace(WAIT, f"{WAIT}bar.sync 0;\n").replace("LATER;\n", "LATER;\nbar.sync 0;\n")
    launch(behind, warpgroups=2)


def test_what_is_no_fault() -> None:
    """Products one after the other, and two groups of which the older alone is waited for."""
    other = PRODUCT.replace("%d", "%e").replace("%p1", "0")
    plain = launch(f"{FENCE}{PRODUCT}{PRODUCT}{DONE}")[0]
    for body in (
        f"{FENCE}{PRODUCT}{COMMIT}{PRODUCT}{COMMIT}{WAIT}",
        f"{FENCE}{PRODUCT}{COMMIT}{WAIT}{PRODUCT}{DONE}",
        f"{FENCE}{PRODUCT}{PRODUCT}{COMMIT}{other}{COMMIT}wgmma.wait_group.sync.aligned 1;\n"
        f"mov.b32 %r6, %d0;\n{WAIT}",
        f"{FENCE}{PRODUCT}{PRODUCT}{DONE}bar.sync 0;\n@%p2 st.shared.b32 [%r5], %e0;\n",
        f"{FENCE}{PRODUCT}{COMMIT}@%p2 st.shared.b32 [%r5+40000], %e0;\n{PRODUCT}{DONE}",
        f"bar.sync 0;\n@%p2 cp.async.ca.shared.global [%at], [%memory], 4;\n"
        f"cp.async.wait_all;\n{READY}{FENCE}{PRODUCT}{PRODUCT}{DONE}",
    ):
        for found in launch(body):
            np.testing.assert_array_equal(found, plain)


def test_nothing_of_a_fault_is_left_behind() -> None:
    good = f"{FENCE}{PRODUCT}{DONE}"
    first = launch(good)[0]
    for name in ("operand-written-before-wait", "never-waited", "a-warp-stays-away"):
        with pytest.raises(ptx_machine.Fault):
            launch(FAULTS[name][0])
        np.testing.assert_array_equal(launch(good)[0], first)
