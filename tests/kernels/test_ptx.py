"""The check of barriers in PTX: orders of store, barrier and load, and what a compiler writes."""

from __future__ import annotations

import pytest
from triton_scratch import compiled_ptx

from xlnet_fast.kernels.report import ptx
from xlnet_fast.kernels.triton import INTERPRETED, triton

needs_compiler = pytest.mark.skipif(triton is None or INTERPRETED, reason="needs Triton's compiler")

HEAD = """
.visible .entry _kernel(
	.param .u64 .ptr .global .align 1 _kernel_param_0,
	.param .u64 .ptr .global .align 1 _kernel_param_1
)
.reqntid 256
{
	.reg .pred 	%p<3>;
	.reg .b64 	%rd<9>;
	ld.param.b64 	%rd1, [_kernel_param_0];
	ld.param.b64 	%rd2, [_kernel_param_1];
	mov.u32 	%r1, %tid.x;
	mad.wide.u32 	%rd3, %r1, 4, %rd2;   // address of the scratch memory
	mad.wide.u32 	%rd4, %r1, 4, %rd1;
"""
STORE = "\t@%p1 st.global.v2.b32 [ %rd3 + 0 ], { %r2, %r3 };\n"
BARRIER = "\tbar.sync \t0;\n"
LOAD = "\tld.global.b32 { %r4 }, [ %rd3 + 8 ];\n"
COPY = "\tcp.async.cg.shared.global [ %r9 + 0 ], [ %rd3 + 0 ], 0x10, %r5;\n"
OTHER = "\tld.global.b32 %r6, [%rd4];\n\tst.global.b32 [%rd4], %r6;\n"
PARTIAL = ("@%p2 bar.sync \t0", "bar.sync \t1", "bar.sync \t0, 128", "bar.warp.sync \t-1")
END = "$L__BB0_9:\n\tret;\n}\n"


def found(*body: str) -> list[str]:
    return ptx.disorder(HEAD + "".join(body) + END, 1)


def loop(*body: str, label: str = "$L__BB0_1") -> str:
    return f"{label}:\n" + "".join(body) + f"\t@%p2 bra \t{label};\n"


@pytest.mark.parametrize("load", [LOAD, COPY])
def test_a_load_behind_the_barrier_is_in_order(load):
    assert found(STORE, BARRIER, load) == []
    assert found(OTHER, STORE, OTHER, BARRIER, load, OTHER) == []
    assert found(loop(STORE), BARRIER, loop(load, label="$L__BB0_2")) == []
    assert found(loop(STORE, BARRIER, load, BARRIER)) == []


@pytest.mark.parametrize("load", [LOAD, COPY])
@pytest.mark.parametrize("between", ["", OTHER, *(f"\t{each};\n" for each in PARTIAL)])
def test_a_load_without_a_barrier_of_the_whole_block_is_not(between, load):
    (problem,) = found(STORE, between, load)
    assert "loads what was stored with no barrier between" in problem
    assert problem.startswith("line ")
    assert " ".join(load.split()).rstrip(";") in problem


def test_what_comes_round_a_loop_counts():
    (problem,) = found(loop(STORE, BARRIER, LOAD))
    assert "st.global.v2.b32" in problem
    assert "overwrites what was loaded" in problem
    (problem,) = found(loop(LOAD, BARRIER, STORE))
    assert "loads what was stored" in problem


def test_a_barrier_on_one_way_alone_does_not_count():
    branch = "\t@%p2 bra \t$L__BB0_2;\n" + BARRIER + "$L__BB0_2:\n"
    (problem,) = found(STORE, branch, LOAD)
    assert "loads what was stored" in problem
    assert found(STORE, "\tbra.uni \t$L__BB0_3;\n", LOAD, "$L__BB0_3:\n", BARRIER, LOAD) == []


def test_labels_of_inline_assembly_are_known_in_their_braces():
    """As Triton waits for tensor cores of sm_100: several times, with the same names each."""

    def waits(*body: str) -> str:
        return (
            "{\n\t@!%p1 bra.uni skipWait;\n\t.reg .pred complete;\nwaitLoop:\n"
            "\tmbarrier.try_wait.parity.shared::cta.b64 complete, [%r1], %r2;\n"
            + "".join(body)
            + "\t@!complete bra.uni waitLoop;\nskipWait:\n}\n"
        )

    assert found(STORE, waits(), BARRIER, waits(), LOAD, waits()) == []
    (problem,) = found(STORE, waits(BARRIER), LOAD)  # the wait may be left out, and its barrier
    assert "loads what was stored" in problem
    (problem,) = found(waits(), STORE, BARRIER, waits(LOAD, BARRIER, STORE))  # round its own loop
    assert "loads what was stored" in problem
    assert found(STORE, BARRIER, waits(LOAD), "\tbrev.b32 \t%r7, %r8;\n") == []


def test_an_address_is_followed_through_what_computes_it():
    steps = (
        "\tmov.b64 \t{%r20, %r21}, %rd3;\n\tadd.s32 \t%r22, %r20, 64;\n"
        "\tmov.b64 \t%rd6, {%r22, %r21};\n\tselp.b64 \t%rd7, %rd6, %rd4, %p1;\n"
        "\tld.global.b32 \t%r23, [%rd7+4];\n"
    )
    assert found(STORE, BARRIER, steps) == []
    (problem,) = found(STORE, steps)
    assert "[%rd7+4]" in problem


def test_a_copy_into_shared_memory_does_not_make_its_address_one_of_scratch_memory():
    other = COPY.replace("%rd3", "%rd4")
    assert found(STORE, BARRIER, COPY, BARRIER, STORE, other) == []


def test_what_would_make_the_check_vacuous_is_said():
    assert found(STORE) == ["parameter 1 is never loaded from"]
    assert found(LOAD) == ["parameter 1 is never stored to"]
    assert len(found(OTHER)) == 2
    assert "parameter 0 is never" not in " ".join(ptx.disorder(HEAD + OTHER + END, 0))
    assert found(STORE, BARRIER, LOAD.replace("global", "global.nc"))[0].endswith(
        "loads from a cache of constant data"
    )
    (problem,) = found(STORE, BARRIER, LOAD, "\tbrx.idx \t%r1, $L_brx_0;\n")
    assert "is not in the text" in problem
    atomic = "\tatom.global.add.f32 \t%f1, [%rd3], %f2;\n"
    (problem,) = found(STORE, BARRIER, LOAD, atomic)
    assert "overwrites what was loaded" in problem
    (problem,) = found(STORE, atomic, BARRIER, LOAD)
    assert "loads what was stored" in problem
    assert found(STORE, BARRIER, LOAD, BARRIER, atomic) == []


@needs_compiler
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_a_kernel_compiled_without_its_barriers_is_red(arch):
    for name in ("both", "first", "second", "none"):
        problems = ptx.disorder(compiled_ptx(arch, name), 0)
        assert any("loads what was stored" in each for each in problems) == (
            name in ("second", "none")
        )
        assert any("overwrites what was loaded" in each for each in problems) == (
            name in ("first", "none")
        )
