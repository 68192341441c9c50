"""How the PTX interpreter reads texts: forms that compilers write, and what it refuses."""

from __future__ import annotations

import itertools

import numpy as np
import ptx_machine
import ptx_snippets
import ptx_text
import pytest
from ptx_snippets import HEADER, entry, launched


def only(text: str) -> ptx_text.Kernel:
    """The only kernel of a text."""
    (kernel,) = ptx_text.parse(text).kernels.values()
    return kernel


def body(text: str) -> list[ptx_text.Instruction]:
    """The instructions of a kernel with that body."""
    return only(f"{HEADER}.visible .entry test(.param .u64 out)\n{{\n{text}\n}}\n").instructions


def test_names_and_target_of_a_module() -> None:
    text = HEADER + "".join(f".visible .entry k{i}()\n{{\n  ret;\n}}\n" for i in range(3))
    module = ptx_text.parse(text)
    assert module.target == "sm_80"
    assert list(module.kernels) == ["k0", "k1", "k2"]
    assert ptx_text.parse(text.replace("sm_80", "sm_90a")).target == "sm_90a"
    assert [kernel.line for kernel in module.kernels.values()] == [4, 8, 12]


def test_what_is_no_instruction_is_passed_over() -> None:
    found = body("""\
      // add.s32 %r1, %r2, %r3;
      .loc 1 260 0                // attention.py:260:0; ret;
      .loc 2 43 13, function_name $L__info_string0, inlined_at 1 278 15
      /* sub.s32 %r1;
         ret; */ .pragma "nounroll";
      .pragma "used_bytes_mask 7";
    $L__func_begin0:
      mov.u32 %r1, %tid.x;   mov.u32 	%r2,%ctaid.x ;// two in a line
      ret;
    $L__func_end0:""")
    assert [(each.name, each.line) for each in found] == [
        ("mov.u32", 13),
        ("mov.u32", 13),
        ("ret", 14),
    ]


def test_sections_and_file_lines_around_a_kernel() -> None:
    text = (
        HEADER
        + """\
.extern .shared .align 16 .b8 global_smem[];
.global .align 1 .b8 _$_str[11] = {95, 95, 67, 85, 68, 65, 95, 70, 84, 90};
.visible .entry k(
  .param .u64 .ptr .global .align 1 k_param_0,
  .param .f32 k_param_1
)
.reqntid 256
.maxnreg 255
{
  ret;
}
  .file 1 "/some/where/attention.py"
  .section .debug_abbrev
  {
.b8 1                                   // Abbreviation Code
.b8 17
  }
  .section  .debug_macinfo  { }
"""
    )
    kernel = only(text)
    assert kernel.threads == (256, 1, 1)
    assert [each.name for each in kernel.symbols if each.space == "shared"] == ["global_smem"]


def test_operands() -> None:
    (found,) = body("@!%p1 ld.global.v4.b32 { %r1, %r2,%r3, _ }, [ %rd7 + 0 ];")
    assert found.guard == "!%p1"
    assert [each.values for each in found.operands] == [("%r1", "%r2", "%r3", "_"), ("%rd7",)]
    assert found.operands[1].is_address
    for text, offset in (
        ("[%rd1+-792]", -792),
        ("[%rd1]", 0),
        ("[%rd1+0x10]", 16),
        ("[%rd1 - 8]", -8),
        ("[%rd1+4096]", 4096),
    ):
        (found,) = body(f"ld.param.f32 %f1, {text};")
        assert found.operands[1].offset == offset
        assert found.operands[1].values == ("%rd1",)
    (found,) = body("ld.param.u64 %rd4, [_Z6kernelIN3xln8BFloat16ELi64EEEv_param_0+1184];")
    assert found.operands[1].values == ("_Z6kernelIN3xln8BFloat16ELi64EEEv_param_0",)
    assert found.operands[1].offset == 1184
    (found,) = body("shfl.sync.bfly.b32 \t%r1|%p2, %r3, 1, 0x1f, -1;")
    assert [each.values for each in found.operands[:2]] == [("%r1", "%p2"), ("%r3",)]


NUMBERS = {
    "7": 7,
    "-1": 0xFFFFFFFF,
    "-2147483648": 0x80000000,
    "4294967295": 0xFFFFFFFF,
    "0x1F": 31,
    "0X1f": 31,
    "0b101": 5,
    "017": 15,
    "0": 0,
    "12U": 12,
    "0xffffU": 0xFFFF,
    "0f3F800000": 0x3F800000,
    "0F80000000": 0x80000000,
}


def test_numbers() -> None:
    stores = "".join(
        f"mov.b32 %r0, {text};\nst.global.b32 [%out+{4 * i}], %r0;\n"
        for i, text in enumerate(NUMBERS)
    )
    (found,) = launched(entry(f"{stores}ret;"), [np.zeros(len(NUMBERS), np.uint32)], threads=1)
    assert found.tolist() == list(NUMBERS.values())


def test_a_number_is_cut_to_the_width() -> None:
    text = """
      mov.u16 %h0, -1;
      cvt.u32.u16 %r0, %h0;
      st.global.b32 [%out], %r0;
      mov.b64 %q0, -1;
      and.b64 %q0, %q0, -4294967296;
      st.global.b64 [%out+8], %q0;
      mov.b64 %q1, 0x8000000000000000;
      st.global.b64 [%out+16], %q1;
      st.global.b64 [%out+24], 5;
      ret;"""
    (found,) = launched(entry(text), [np.zeros(4, np.uint64)], threads=1)
    assert found.tolist() == [0xFFFF, 0xFFFFFFFF00000000, 1 << 63, 5]


def test_names_that_hold_in_braces_only() -> None:
    text = """
      .reg .b32 %t, t<3>;
      mov.b32 %t, 1;
      mov.b32 t1, 10;
      { .reg .b32 %t, t<3>; mov.b32 %t, 2; mov.b32 t1, 20;
        { .reg .b16 l, h; .reg .b32 %t; mov.b32 %t, 0x00040003; mov.b32 {l, h}, %t;
          cvt.u32.u16 %r1, l; cvt.u32.u16 %r2, h; }
        add.s32 %r3, %t, t1; }
      add.s32 %r4, %t, t1;
      st.global.v4.b32 [%out], {%r1, %r2, %r3, %r4};
      { .reg .b16 l; mov.u16 l, 5; cvt.u32.u16 %r0, l; }
      st.global.b32 [%out+16], %r0;
      ret;"""
    (found,) = launched(entry(text), [np.zeros(5, np.uint32)], threads=1)
    assert found.tolist() == [3, 4, 22, 11, 5]


def test_labels_that_hold_in_braces_only() -> None:
    """Inline assembly that is used twice has the same label twice, each in braces of its own."""
    once = "{{ setp.eq.u32 %p0, %lane, {lane}; @!%p0 bra DONE; mov.b32 %r0, {value}; DONE: }}\n"
    text = "mov.b32 %r0, 1;\n" + once.format(lane=3, value=7) + once.format(lane=5, value=8)
    text += "mad.wide.u32 %q0, %lane, 4, %out;\nst.global.b32 [%q0], %r0;\nret;"
    (found,) = launched(entry(text), [np.zeros(32, np.uint32)])
    assert found.tolist() == [{3: 7, 5: 8}.get(lane, 1) for lane in range(32)]


def test_parameters_lie_at_their_alignment() -> None:
    text = f"""{HEADER}.visible .entry k(
      .param .u8 a, .param .u32 b, .param .u16 c, .param .u64 .ptr .global .align 16 d,
      .param .align 8 .b8 e[20], .param .f32 f, .param .align 16 .b8 g[3]
    ) {{ ret; }}"""
    kernel = only(text)
    expected = {"a": (0, 1), "b": (4, 4), "c": (8, 2), "d": (16, 8), "e": (24, 20)}
    expected |= {"f": (44, 4), "g": (48, 3)}
    assert {each.name: (each.offset, each.bytes) for each in kernel.parameters} == expected


def test_parameters_by_name_and_by_address() -> None:
    text = f"""{HEADER}.visible .entry k(
      .param .u64 out, .param .align 8 .b8 given[24], .param .u8 low, .param .s16 high
    ) {{
      .reg .b64 %rd<4>; .reg .b32 %r<8>; .reg .b16 %h<4>;
      ld.param.u64 %rd0, [out];
      mov.b64 %rd1, given;
      add.s64 %rd2, %rd1, 8;
      ld.param.v2.u32 {{%r0, %r1}}, [given];
      ld.param.u32 %r2, [%rd2+4];
      ld.param.u32 %r3, [given+16];
      ld.param.u8 %h0, [low];  cvt.u32.u16 %r4, %h0;
      ld.param.s16 %r5, [high];
      st.global.v4.b32 [%rd0], {{%r0, %r1, %r2, %r3}};
      st.global.v2.b32 [%rd0+16], {{%r4, %r5}};
      ret;
    }}"""
    kernel = ptx_machine.load(text)["k"]
    given = np.arange(100, 106, dtype=np.uint32)
    with ptx_machine.memory():
        out = ptx_snippets.on_device(np.zeros(6, np.uint32))
        pointer = out.data_ptr().to_bytes(8, "little")
        parameters = pointer + given.tobytes() + b"\xfe\x00\xfd\xff"
        ptx_machine.launch(kernel, (1,), 1, parameters)
        found = out.numpy().view(np.uint32).tolist()
    assert found == [100, 101, 103, 104, 0xFE, 0xFFFFFFFD]


@pytest.mark.parametrize("count", [0, 7, 9, 16])
def test_a_launch_with_too_few_or_too_many_bytes_of_parameters(count: int) -> None:
    (kernel,) = ptx_machine.load(entry("ret;")).values()
    ptx_machine.launch(kernel, (1,), 32, bytes(8))
    with pytest.raises(ValueError, match="8"):
        ptx_machine.launch(kernel, (1,), 32, bytes(count))


def test_a_launch_with_other_threads_than_the_text_asks_for() -> None:
    (kernel,) = ptx_machine.load(entry("ret;", directives=".reqntid 64\n")).values()
    ptx_machine.launch(kernel, (1,), 64, bytes(8))
    with pytest.raises(ValueError, match="64"):
        ptx_machine.launch(kernel, (1,), 96, bytes(8))
    (kernel,) = ptx_machine.load(entry("ret;", directives=".maxntid 64, 1, 1\n")).values()
    ptx_machine.launch(kernel, (1,), 32, bytes(8))
    with pytest.raises(ValueError, match="96 threads"):
        ptx_machine.launch(kernel, (1,), 96, bytes(8))


REFUSED = {
    "an instruction that nobody has": "frobnicate.b32 %r0, %r1;",
    "one that is not had": "wmma.load.a.sync.aligned.row.m16n16k16.f16 {%r0}, [%q0];",
    "a call": "call.uni (%r0), printf, (%r1);",
    "an unknown modifier": "add.sideways.s32 %r0, %r1, %r2;",
    "a modifier of another": "add.approx.f32 %r0, %r1, %r2;",
    "an unknown type": "add.s33 %r0, %r1, %r2;",
    "a type that it has not": "popc.b16 %r0, %h1;",
    "too few operands": "add.s32 %r0, %r1;",
    "too many operands": "add.s32 %r0, %r1, %r2, %r3;",
    "no operands": "add.s32;",
    "a narrower register": "add.s32 %r0, %r1, %h1;",
    "a wider register": "add.s32 %q0, %r1, %r2;",
    "a predicate for a number": "add.s32 %r0, %r1, %p1;",
    "a number for a predicate": "and.pred %p0, %p1, %r1;",
    "a number that is written": "add.s32 5, %r1, %r2;",
    "an address for a register": "add.s32 %r0, [%q1], %r2;",
    "a vector for a register": "add.s32 %r0, {%h0, %h1}, %r2;",
    "an undeclared register": "add.s32 %r0, %r1, %r99;",
    "an undeclared name": "mov.b64 %q0, nowhere;",
    "a guard that is no predicate": "@%r1 add.s32 %r0, %r1, %r2;",
    "a guard that is not declared": "@%p99 add.s32 %r0, %r1, %r2;",
    "a branch to nowhere": "bra NOWHERE;",
    "a vector too short": "ld.global.v4.b32 {%r0, %r1}, [%q0];",
    "a load without an address": "ld.global.b32 %r0, %q0;",
    "a rounding mode that a sum has not": "add.rna.f32 %r0, %r1, %r2;",
    "a comparison that is not there": "setp.approximately.f32 %p0, %r1, %r2;",
    "a shuffle that is not there": "shfl.sync.twist.b32 %r0, %r1, 1, 31, -1;",
    "a product of matrices of no such size": (
        "mma.sync.aligned.m16n8k17.row.col.f32.bf16.bf16.f32 "
        "{%r0,%r1,%r2,%r3}, {%r4,%r5,%r6,%r7}, {%r0,%r1}, {%r0,%r1,%r2,%r3};"
    ),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_is_not_known_fails_with_its_line(case: str) -> None:
    text = entry(f"mov.b32 %r1, 0;\n{REFUSED[case]}\nret;")
    line = 1 + text[: text.index(REFUSED[case])].count("\n")
    with pytest.raises((ptx_machine.Fault, ptx_text.TextError)) as raised:
        ptx_machine.load(text)
    assert f"line {line}:" in str(raised.value)
    assert REFUSED[case].split(maxsplit=1)[0].rstrip(";") in str(raised.value)


@pytest.mark.parametrize(
    "broken",
    [
        ".visible .entry k() {\n  add.s32 %r1, %r2, %r3\n}\n",  # no semicolon
        ".visible .entry k() {\n  ret;\n",  # no end
        ".visible .entry k() {\n  .reg .b31 %r<4>;\n  ret;\n}\n",
        ".visible .entry k(.param .u63 a) {\n  ret;\n}\n",
        ".visible .nonsense k;\n",
        ".address_size 32\n.visible .entry k() {\n  ret;\n}\n",
    ],
)
def test_a_text_that_is_broken(broken: str) -> None:
    with pytest.raises(ptx_text.TextError, match=r"^line \d+: "):
        ptx_text.parse(HEADER + broken)


def test_variables_in_shared_memory_do_not_overlap() -> None:
    text = """
      .shared .align 2 .b8 small[6];
      .shared .align 16 .b8 wide[32];
      .shared .f32 number;
      mov.u32 %r0, small;  mov.u32 %r1, wide;  mov.u32 %r2, number;  mov.u32 %r3, dynamic;
      st.global.v4.b32 [%out], {%r0, %r1, %r2, %r3};
      add.s32 %r4, %r3, 64;
      st.shared.b32 [%r3], 1;
      st.shared.b32 [dynamic+60], 2;
      ret;"""
    module = entry(text, outside=".extern .shared .align 128 .b8 dynamic[];")
    (found,) = launched(module, [np.zeros(4, np.uint32)], threads=1, shared_bytes=64)
    small, wide, number, dynamic = map(int, found)
    assert small % 2 == wide % 16 == number % 4 == dynamic % 128 == 0
    ranges = sorted([(small, 6), (wide, 32), (number, 4), (dynamic, 64)])
    for (start, size), (after, _) in itertools.pairwise(ranges):
        assert start + size <= after
    assert ranges[0][0] > 0
    with pytest.raises(ptx_machine.Fault, match=r"st\.shared"):
        launched(module, [np.zeros(4, np.uint32)], threads=1, shared_bytes=60)
