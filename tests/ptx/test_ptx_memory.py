"""What the PTX interpreter loads and stores, and the addresses it lets no kernel touch."""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Callable, Iterator

import numpy as np
import ptx_machine
import pytest
import torch
from ptx_snippets import entry, launched

LANES = 32
BYTES = np.random.default_rng(7).integers(0, 256, LANES * 64, dtype=np.uint8)
GAP = 4 << 20
"""Between two tensors there is at least so much that nobody may touch."""
STORAGE = "  .reg .b32 %a<8>;\n  .reg .b64 %w<8>;\n  .reg .b16 %n<8>;\n"
WIDTHS = {"b8": 1, "b16": 2, "b32": 4, "b64": 8}
REGISTERS = {1: "%n", 2: "%n", 4: "%a", 8: "%w"}


def lane_address(name: str, stride: int, register: str = "%q0") -> str:
    """The address of a lane's own bytes of a parameter."""
    return f"mul.wide.u32 {register}, %lane, {stride};\nadd.s64 {register}, {register}, %{name};\n"


def group(register: str, count: int) -> str:
    return "{" + ", ".join(f"{register}{i}" for i in range(count)) + "}"


def fault(text: str, *arguments: object, **options: object) -> str:
    """The message of the fault in which a launch must end."""
    with pytest.raises(ptx_machine.Fault) as caught:
        launched(text, *arguments, **options)  # type: ignore[arg-type]
    return str(caught.value)


def decoding_fault(instruction: str) -> str:
    with pytest.raises(ptx_machine.Fault) as caught:
        ptx_machine.load(entry(f"{instruction}\nret;", registers=STORAGE))
    return str(caught.value)


@pytest.mark.parametrize("space", ["global", "shared", "local", "generic"])
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("width", sorted(WIDTHS))
def test_each_width_and_vector(width: str, count: int, space: str) -> None:
    size = WIDTHS[width] * count
    if size > 32:
        pytest.skip("no such access")
    vector = "" if count == 1 else f".v{count}"
    registers = group(REGISTERS[WIDTHS[width]], count)
    body = lane_address("source", size) + lane_address("out", size, "%q1")
    body += f"ld.global{vector}.{width} {registers}, [%q0];\n"
    if space in ("shared", "local"):
        place = "mov.u64 %q2, kept;\n"
        if space == "shared":
            place += f"mul.wide.u32 %q3, %lane, {size};\nadd.s64 %q2, %q2, %q3;\n"
        body += f"{place}st.{space}{vector}.{width} [%q2], {registers};\n"
        body += f"ld.{space}{vector}.{width} {registers}, [%q2];\n"
    suffix = "" if space == "generic" else ".global"
    body += f"st{suffix}{vector}.{width} [%q1], {registers};\nret;"
    kept = {"shared": f".shared .align 32 .b8 kept[{LANES * size}];\n"}
    kept["local"] = f".local .align 32 .b8 kept[{size}];\n"
    text = entry(body, ("source", "out"), STORAGE + kept.get(space, ""))
    source = BYTES[: LANES * size]
    _, out = launched(text, [source, np.zeros_like(source)])
    np.testing.assert_array_equal(out, source)


def test_narrow_loads_extend_and_stores_cut() -> None:
    body = lane_address("source", 2) + lane_address("out", 32, "%q1")
    body += (
        "ld.global.s8 %a0, [%q0];\nld.global.u8 %a1, [%q0];\nld.global.s16 %w0, [%q0];\n"
        "ld.global.u16 %a2, [%q0];\nld.global.s8 %n0, [%q0];\nld.global.b16 %n1, [%q0];\n"
        "st.global.b32 [%q1], %a0;\nst.global.b32 [%q1+4], %a1;\nst.global.b64 [%q1+8], %w0;\n"
        "st.global.b32 [%q1+16], %a2;\nst.global.b16 [%q1+20], %n0;\nst.global.b8 [%q1+22], %n1;\n"
        "st.global.u8 [%q1+23], %a0;\nst.global.b32 [%q1+24], 305419896;\n"
        "st.global.b16 [%q1+28], %w0;\nst.global.b16 [%q1+30], 4660;\nret;"
    )
    source = BYTES[: LANES * 2].view(np.int16)
    _, out = launched(entry(body, ("source", "out"), STORAGE), [source, np.zeros(1024, np.uint8)])
    for value, row in zip(source.tolist(), out.reshape(LANES, 32), strict=True):
        low = value & 0xFF
        signed = low - 256 if low > 127 else low
        expected = struct.pack(
            "<iIqIhBBIHH",
            *(signed, low, value, value & 0xFFFF, signed, low, low),
            *(0x12345678, value & 0xFFFF, 0x1234),
        )
        assert row.tobytes() == expected


def at_offset(instruction: str, offset: int, size: int) -> tuple[str, list[np.ndarray]]:
    """Lane 3 alone does something at an offset within a tensor of so many bytes."""
    body = "setp.ne.u32 %p0, %lane, 3;\n@%p0 ret;\n"
    body += f"add.s64 %q0, %out, {offset};\n{instruction}\nret;"
    return entry(body, registers=STORAGE), [np.zeros(size, np.uint8)]


@pytest.mark.parametrize(
    ("instruction", "width"),
    [
        ("ld.global.b8 %n0, [%q0];", 1),
        ("st.global.b16 [%q0], %n0;", 2),
        ("ld.global.b32 %a0, [%q0];", 4),
        ("st.b64 [%q0], %w0;", 8),
        ("ld.global.v4.b32 {%a0, %a1, %a2, %a3}, [%q0];", 16),
        ("st.global.v2.b64 [%q0], {%w0, %w1};", 16),
        ("atom.global.add.u32 %a0, [%q0], 1;", 4),
        ("red.global.add.f32 [%q0], 0f3F800000;", 4),
    ],
)
def test_bounds_and_alignment_of_global_memory(instruction: str, width: int) -> None:
    size = 5 * 16
    launched(*at_offset(instruction, 0, size))
    launched(*at_offset(instruction, size - width, size))
    for offset, end in ((size, size), (-width, size), (size - width, size - 1), (GAP - 16, size)):
        said = fault(*at_offset(instruction, offset, end))
        assert "out of bounds" in said
        assert f"byte {offset} of a buffer of {end} bytes" in said
        assert "thread 3 " in said
        assert instruction.split(" [")[0].split()[0] in said
    for offset in range(1, width):
        assert f"not a multiple of {width}" in fault(*at_offset(instruction, offset, size))


def launch_at(address: int, instruction: str = "ld.global.b32 %a0, [%out];") -> None:
    (kernel,) = ptx_machine.load(entry(f"{instruction}\nret;", registers=STORAGE)).values()
    ptx_machine.launch(kernel, (1,), 1, struct.pack("<Q", address))


@pytest.mark.parametrize("make", [lambda: torch.zeros(8), lambda: torch.tensor(3.0)])
def test_tensors_made_outside_cannot_be_touched(make: Callable[[], torch.Tensor]) -> None:
    ptx_machine.engine()
    outside = make()
    with ptx_machine.memory():
        inside = make()
        launch_at(inside.data_ptr())
        for stray in (outside.data_ptr(), 0, 4096, 1 << 63):
            with pytest.raises(ptx_machine.Fault, match=r"made outside of memory\(\)"):
                launch_at(stray)
    launch_at(inside.data_ptr())  # it is the device's as long as it lives


def test_freed_tensors_cannot_be_touched() -> None:
    with ptx_machine.memory():
        tensor = torch.zeros(100)
        address = tensor.data_ptr()
        launch_at(address)
        del tensor
        for _ in range(50):
            torch.zeros(100)
        with pytest.raises(ptx_machine.Fault, match="400 bytes that has been freed"):
            launch_at(address)


def test_tensors_lie_apart_and_are_full_of_nan() -> None:
    with ptx_machine.memory():
        tensors = [torch.empty(size, dtype=torch.bfloat16) for size in (1, 77, 1000, 1 << 23)]
        with ptx_machine.memory():
            tensors += [torch.empty(5), torch.empty(3, dtype=torch.float16)]
        tensors.append(torch.empty(9))
    outside = torch.empty(9)
    for tensor in tensors:
        assert tensor.isnan().all()
        assert tensor.data_ptr() % 1024 == 512
        launch_at(tensor.data_ptr(), "ld.global.b16 %n0, [%out];")
    with pytest.raises(ptx_machine.Fault, match="no memory of the device"):
        launch_at(outside.data_ptr())
    ends = sorted((each.data_ptr(), each.data_ptr() + each.nbytes) for each in tensors)
    assert all(after[0] - before[1] >= GAP for before, after in itertools.pairwise(ends))


def test_places_of_freed_tensors_are_used_again() -> None:
    with ptx_machine.memory():
        places = {torch.empty(10).data_ptr() for _ in range(2000)}
        assert len(places) < 1000
        again = torch.empty(10)
        assert again.isnan().all()


SHARED = "  .shared .align 16 .b8 kept[80];\n"


@pytest.mark.parametrize("generic", [False, True])
@pytest.mark.parametrize(
    ("instruction", "width"),
    [
        ("st{}.b8 [%q2], %n0;", 1),
        ("ld{}.b16 %n0, [%q2];", 2),
        ("st{}.v4.b32 [%q2], {{%a0, %a1, %a2, %a3}};", 16),
        ("atom{}.add.u32 %a0, [%q2], 1;", 4),
    ],
)
def test_bounds_and_alignment_of_shared_memory(instruction: str, width: int, generic: bool) -> None:
    def text(offset: int) -> str:
        body = f"mov.u64 %q2, kept;\nadd.s64 %q2, %q2, {offset};\n"
        body += "setp.ne.u32 %p0, %lane, 3;\n@%p0 ret;\n"
        if generic:
            body += "cvta.shared.u64 %q2, %q2;\n"
        body += instruction.format("" if generic else ".shared")
        return entry(f"{body}\nret;", registers=STORAGE + SHARED)

    nothing = [np.zeros(1, np.uint8)]
    for offset in (0, 80 - width):
        launched(text(offset), nothing)
    launched(text(80), nothing, shared_bytes=width)  # the launch's own comes after the symbols
    for offset in (80, -width, -4096, 1 << 20):
        said = fault(text(offset), nothing)
        assert f"byte {offset} of shared memory of 80 bytes" in said
    for offset in range(1, width):
        assert f"not a multiple of {width}" in fault(text(offset), nothing)


def test_local_memory_is_each_thread_s_own() -> None:
    place = "mov.u64 %q2, kept;\ncvta.local.u64 %q2, %q2;\n"
    body = f"{place}st.u32 [%q2+4], %tid_x;\nbar.sync 0;\nld.local.u32 %a0, [kept+4];\n"
    body += "mul.wide.u32 %q0, %tid_x, 4;\nadd.s64 %q0, %q0, %out;\nst.global.b32 [%q0], %a0;\nret;"
    local = "  .local .align 4 .b8 kept[8];\n"
    text = entry(body, registers=STORAGE + local)
    (out,) = launched(text, [np.zeros(64, np.uint32)], threads=64)
    np.testing.assert_array_equal(out, np.arange(64))
    for offset, said in ((8, "byte 8 of local memory of 8 bytes"), (2, "not a multiple of 4")):
        assert said in fault(text.replace("[%q2+4]", f"[%q2+{offset}]"), [out], threads=64)


def test_spaces_of_generic_addresses() -> None:
    def bit(instruction: str, place: int) -> str:
        said = f"{instruction}\nselp.b32 %a1, {1 << place}, 0, %p1;\nor.b32 %a0, %a0, %a1;\n"
        return said

    body = "mov.u32 %a0, 0;\nmov.u64 %q0, kept;\ncvta.shared.u64 %q1, %q0;\n"
    body += "mov.u64 %q2, mine;\ncvta.local.u64 %q3, %q2;\ncvta.global.u64 %q4, %out;\n"
    place = 0
    for space in ("shared", "local", "global"):
        for register in ("%q1", "%q3", "%q4"):
            body += bit(f"isspacep.{space} %p1, {register};", place)
            place += 1
    for space, generic, own in (("shared", "%q1", "%q0"), ("local", "%q3", "%q2")):
        body += f"cvta.to.{space}.u64 %q5, {generic};\n"
        body += bit(f"setp.eq.u64 %p1, %q5, {own};", place)
        place += 1
    body += "cvta.to.global.u64 %q5, %q4;\nst.global.b32 [%q5], %a0;\nret;"
    text = entry(body, registers=STORAGE + SHARED + "  .local .align 4 .b8 mine[8];\n")
    (out,) = launched(text, [np.zeros(1, np.uint32)])
    assert out[0] == 0b11_100_010_001


def test_one_instruction_may_touch_several_spaces_and_tensors() -> None:
    body = (
        "mov.u64 %q0, kept;\ncvta.shared.u64 %q1, %q0;\nmul.wide.u32 %q2, %lane, 4;\n"
        "rem.u32 %r0, %lane, 3;\nsetp.eq.u32 %p0, %r0, 0;\nsetp.eq.u32 %p1, %r0, 1;\n"
        "selp.b64 %q3, %first, %second, %p0;\nselp.b64 %q3, %q1, %q3, %p1;\n"
        "add.s64 %q3, %q3, %q2;\nst.u32 [%q3], %lane;\nld.u32 %a0, [%q3];\n"
        "add.s64 %q2, %q2, %out;\nst.global.b32 [%q2], %a0;\nret;"
    )
    shared = "  .shared .align 16 .b8 kept[128];\n"
    empty = np.full(LANES, 99, np.uint32)
    text = entry(body, ("first", "second", "out"), STORAGE + shared)
    first, second, out = launched(text, [empty, empty, empty])
    lane = np.arange(LANES)
    np.testing.assert_array_equal(out, lane)
    np.testing.assert_array_equal(first, np.where(lane % 3 == 0, lane, 99))
    np.testing.assert_array_equal(second, np.where(lane % 3 == 2, lane, 99))


UNWRITTEN = entry(
    lane_address("out", 4)
    + "setp.eq.u32 %p0, %lane, 5;\n@!%p0 st.shared.b32 [kept+12], 7;\n"
    + "bar.warp.sync -1;\nld.shared.b32 %a0, [kept+12];\n@%p0 ld.shared.b32 %a0, [kept+64];\n"
    + "st.global.b32 [%q0], %a0;\nret;",
    registers=STORAGE + SHARED,
)


@pytest.fixture
def written_only() -> Iterator[None]:
    """Within the test, reading shared memory that a block has not written is a fault."""
    machine = ptx_machine.engine()
    machine.require_written(True)
    yield
    machine.require_written(False)


def test_unwritten_shared_memory_is_nan_in_each_block() -> None:
    (out,) = launched(UNWRITTEN, [np.zeros(LANES, np.uint32)])
    assert out[5] == 0xFFFFFFFF
    assert (np.delete(out, 5) == 7).all()


def test_unwritten_shared_memory_may_be_a_fault(written_only: None) -> None:
    said = fault(UNWRITTEN, [np.zeros(LANES, np.uint32)])
    assert "bytes 64 to 67 of shared memory, which the block has not written" in said
    launched(UNWRITTEN.replace("kept+64", "kept+12"), [np.zeros(LANES, np.uint32)])


INTEGERS = np.array([0, 1, 5, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 17, 0xDEADBEEF], np.uint32)


def _signed(value: int) -> int:
    return value - (1 << 32) if value >> 31 else value


ATOMICS: dict[str, Callable[[int, int], int]] = {
    "add.u32": lambda old, b: old + b,
    "min.u32": min,
    "max.u32": max,
    "min.s32": lambda old, b: min(old, b, key=_signed),
    "max.s32": lambda old, b: max(old, b, key=_signed),
    "and.b32": lambda old, b: old & b,
    "or.b32": lambda old, b: old | b,
    "xor.b32": lambda old, b: old ^ b,
    "inc.u32": lambda old, b: 0 if old >= b else old + 1,
    "dec.u32": lambda old, b: b if old == 0 or old > b else old - 1,
    "exch.b32": lambda old, b: b,
    "cas.b32": lambda old, b: 123 if old == b else old,
}


@pytest.mark.parametrize("name", sorted(ATOMICS))
def test_atomics_of_integers(name: str) -> None:
    olds, changes = (each.ravel() for each in np.meshgrid(INTEGERS, INTEGERS))
    last = ", 123" if name == "cas.b32" else ""
    body = "mul.wide.u32 %q0, %tid_x, 4;\nadd.s64 %q1, %q0, %place;\nadd.s64 %q2, %q0, %b;\n"
    body += "add.s64 %q3, %q0, %out;\nld.global.b32 %a0, [%q2];\n"
    body += f"atom.global.gpu.acq_rel.{name} %a1, [%q1], %a0{last};\n"
    body += "st.global.b32 [%q3], %a1;\nret;"
    text = entry(body, ("place", "b", "out"), STORAGE)
    place, _, out = launched(text, [olds, changes, np.zeros_like(olds)], threads=64)
    np.testing.assert_array_equal(out, olds)
    pairs = zip(olds.tolist(), changes.tolist(), strict=True)
    assert place.tolist() == [ATOMICS[name](old, b) & 0xFFFFFFFF for old, b in pairs]


@pytest.mark.parametrize("space", ["global", "shared"])
def test_atomic_sums_of_all_threads(space: str) -> None:
    place = "%out" if space == "global" else "kept"
    body = f"st.{space}.f32 [{place}], 0f3FC00000;\n" if space == "shared" else ""
    body = "" if space == "global" else f"{body}bar.sync 0;\n"
    body = body.replace("st.", "setp.eq.u32 %p0, %tid_x, 0;\n@%p0 st.")
    body += f"cvt.rn.f32.u32 %a0, %tid_x;\nred.{space}.gpu.relaxed.add.f32 [{place}], %a0;\n"
    body += "bar.sync 0;\n"
    if space == "shared":
        body += "ld.shared.b32 %a1, [kept];\n@%p0 st.global.b32 [%out], %a1;\n"
    text = entry(body + "ret;", registers=STORAGE + SHARED)
    (out,) = launched(text, [np.full(1, 1.5, np.float32)], threads=128)
    assert out[0] == 1.5 + sum(range(128))


@pytest.mark.parametrize(("type_", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("pair", [False, True])
def test_atomic_sums_of_halves(type_: str, dtype: torch.dtype, pair: bool) -> None:
    a, b = torch.randn(2, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    width, register, suffix = (4, "%a0", "x2") if pair else (2, "%n0", "")
    body = lane_address("place", width) + lane_address("b", width, "%q1")
    body += f"ld.global.b{8 * width} {register}, [%q1];\n"
    body += f"red.global.relaxed.gpu.add.noftz.{type_}{suffix} [%q0], {register};\nret;"
    values = [each.view(torch.int16).numpy() for each in (a, b)]
    place, _ = launched(entry(body, ("place", "b"), STORAGE), values)
    changed = 64 if pair else 32
    expected = torch.cat([(a + b)[:changed], a[changed:]])
    assert torch.equal(torch.from_numpy(place).view(dtype), expected)


def test_atomic_sums_flush_in_global_memory_alone() -> None:
    tiny = np.full(1, 3, np.uint32)  # subnormal
    body = "setp.ne.u32 %p0, %lane, 0;\n@%p0 ret;\nst.shared.b32 [kept], 3;\n"
    body += "atom.global.add.f32 %a0, [%out], 0f00000004;\nred.shared.add.f32 [kept], 0f00000004;\n"
    body += "ld.shared.b32 %a1, [kept];\nst.global.b32 [%other], %a1;\nret;"
    text = entry(body, ("out", "other"), STORAGE + SHARED)
    assert [int(each[0]) for each in launched(text, [tiny, tiny])] == [0, 7]


def test_hints_and_fences_change_nothing() -> None:
    body = (
        "createpolicy.fractional.L2::evict_first.b64 %w0, 0f3F800000;\nprefetch.global.L2 [%out];\n"
        "ld.global.nc.L1::no_allocate.L2::128B.b32 %a0, [%out];\nmembar.gl;\nfence.acq_rel.gpu;\n"
        "ld.global.L1::evict_last.L2::cache_hint.b32 %a1, [%out], %w0;\nadd.u32 %a0, %a0, %a1;\n"
        "setp.eq.u32 %p0, %lane, 0;\n@%p0 st.global.cs.b32 [%other], %a0;\nret;"
    )
    text = entry(body, ("out", "other"), STORAGE)
    assert launched(text, [np.full(1, 4, np.uint32), np.zeros(1, np.uint32)])[1][0] == 8


@pytest.mark.parametrize(
    "instruction",
    [
        "ld.global.b24 %a0, [%out];",
        "ld.global.sometimes.b32 %a0, [%out];",
        "ld.global.v4.b32 {%a0, %a1}, [%out];",
        "ld.global.v4.b64 {%w0, %w1}, [%out];",
        "ld.global.b64 %a0, [%out];",
        "st.global.b64 [%out], %a0;",
        "st.global.b32 %out, %a0;",
        "atom.global.add.b32 %a0, [%out], 1;",
        "atom.global.nand.b32 %a0, [%out], 1;",
        "atom.global.inc.s32 %a0, [%out], 1;",
        "red.global.exch.b32 [%out], 1;",
        "cvta.to.const.u64 %w0, %out;",
        "isspacep.param %p0, %out;",
        "fence.proxy.alias;",
        "cp.async.cg.shared.global [%a0], [%out], 8;",
        "cp.async.ca.shared.global [%a0], [%out], 12;",
        "cp.async.bulk.commit_group;",
        "cp.async.wait_group;",
        "ldmatrix.sync.aligned.m8n16.x4.shared.b16 {%a0, %a1, %a2, %a3}, [%a4];",
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%a0, %a1}, [%a4];",
    ],
)
def test_what_is_not_known_is_a_fault_with_its_line(instruction: str) -> None:
    text = entry(f"{instruction}\nret;", registers=STORAGE)
    line = 1 + text[: text.index(instruction)].count("\n")
    said = decoding_fault(instruction)
    assert re.search(rf"\bline {line}\b", said)
    assert instruction.split()[0].rstrip(";") in said
