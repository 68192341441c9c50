"""Products of small matrices in the PTX interpreter, and how their rows come to the lanes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import ptx_machine
import pytest
import torch
from ptx_snippets import entry, launched

ROWS, COLUMNS, LANES = 16, 8, 32
STORAGE = (
    "  .reg .b32 %a<4>, %b<4>, %c<4>, %d<4>;\n  .reg .b64 %w<8>;\n"
    "  .shared .align 128 .b8 kept[512];\n"
)
TYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32, "f32": torch.float32}
FORMS = [
    ("m16n8k16", "f16", "f32"),
    ("m16n8k16", "f16", "f16"),
    ("m16n8k16", "bf16", "f32"),
    ("m16n8k8", "f16", "f32"),
    ("m16n8k8", "f16", "f16"),
    ("m16n8k8", "bf16", "f32"),
    ("m16n8k8", "tf32", "f32"),
    ("m16n8k4", "tf32", "f32"),
]
forms = pytest.mark.parametrize(("shape", "inputs", "sums"), FORMS, ids=map("-".join, FORMS))

# (register, element within it) of lane `group * 4 + of_four` -> row and column, as the manual of
# PTX has it for each operand.
Fragment = Callable[[int, int, int, int], tuple[int, int]]


def fragment_of_a(inputs: str) -> Fragment:
    if inputs == "tf32":
        return lambda group, of_four, i, _: (group + 8 * (i % 2), of_four + 4 * (i // 2))
    return lambda group, of_four, i, e: (group + 8 * (i % 2), 2 * of_four + e + 8 * (i // 2))


def fragment_of_b(inputs: str) -> Fragment:
    if inputs == "tf32":
        return lambda group, of_four, i, _: (of_four + 4 * i, group)
    return lambda group, of_four, i, e: (2 * of_four + e + 8 * i, group)


def fragment_of_sums(sums: str) -> Fragment:
    if sums == "f32":
        return lambda group, of_four, i, _: (group + 8 * (i // 2), 2 * of_four + i % 2)
    return lambda group, of_four, i, e: (group + 8 * i, 2 * of_four + e)


def spread(matrix: torch.Tensor, fragment: Fragment) -> np.ndarray:
    """The 32-bit registers that hold a matrix: [register, lane]."""
    per_word = 4 // matrix.element_size()
    registers = matrix.numel() // LANES // per_word
    words = torch.empty(registers, LANES, per_word, dtype=matrix.dtype)
    for i in range(registers):
        for lane in range(LANES):
            for e in range(per_word):
                words[i, lane, e] = matrix[fragment(lane // 4, lane % 4, i, e)]
    return words.view(torch.int32).numpy().view(np.uint32).reshape(registers, LANES)


def gathered(words: np.ndarray, dtype: torch.dtype, fragment: Fragment) -> torch.Tensor:
    """The sums that registers hold."""
    elements = torch.from_numpy(words.astype(np.int64).astype(np.int32)).view(dtype)
    elements = elements.reshape(len(words), LANES, -1)
    matrix = torch.empty(ROWS, COLUMNS, dtype=dtype)
    for i, lane, e in np.ndindex(*elements.shape):
        matrix[fragment(lane // 4, lane % 4, i, e)] = elements[i, lane, e]
    return matrix


def product(
    shape: str,
    inputs: str,
    sums: str,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    in_place: bool = False,
) -> torch.Tensor:
    """What one mma.sync makes of A [16, k], B [k, 8] and C [16, 8]."""
    held = {
        "a": spread(a, fragment_of_a(inputs)),
        "b": spread(b, fragment_of_b(inputs)),
        "c": spread(c, fragment_of_sums(sums)),
    }
    loads, lists = "mul.wide.u32 %q0, %lane, 4;\n", {}
    for name, words in held.items():
        loads += f"add.s64 %q1, %{name}_at, %q0;\n"
        for i in range(len(words)):
            loads += f"ld.global.b32 %{name}{i}, [%q1+{4 * LANES * i}];\n"
        lists[name] = "{" + ", ".join(f"%{name}{i}" for i in range(len(words))) + "}"
    to = lists["c"] if in_place else lists["c"].replace("%c", "%d")
    body = f"{loads}mma.sync.aligned.{shape}.row.col.{sums}.{inputs}.{inputs}.{sums} {to}, "
    body += f"{lists['a']}, {lists['b']}, {lists['c']};\nadd.s64 %q1, %out, %q0;\n"
    for i in range(len(held["c"])):
        source = "c" if in_place else "d"
        body += f"st.global.b32 [%q1+{4 * LANES * i}], %{source}{i};\n"
    text = entry(f"{body}ret;", ("a_at", "b_at", "c_at", "out"), STORAGE)
    *_, out = launched(text, [each.ravel() for each in (*held.values(), np.zeros_like(held["c"]))])
    out = out.reshape(-1, LANES)
    return gathered(out, TYPES[sums], fragment_of_sums(sums))


def operands(
    shape: str, inputs: str, sums: str, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random ones; those of tf32 are numbers that tf32 holds."""
    k = int(shape.split("k")[1])
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(ROWS, k, generator=generator).to(TYPES[inputs])
    b = torch.randn(k, COLUMNS, generator=generator).to(TYPES[inputs])
    if inputs == "tf32":
        a, b = (cut(each) for each in (a, b))
    return a, b, torch.randn(ROWS, COLUMNS, generator=generator).to(TYPES[sums])


def cut(x: torch.Tensor) -> torch.Tensor:
    return (x.view(torch.int32) & ~0x1FFF).view(torch.float32)


def truth(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    return a.double() @ b.double() + c.double()


def check(found: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> None:
    """Each sum within a rounding of fp32 for each k, and one to what it is stored as."""
    size = a.double().abs() @ b.double().abs() + c.double().abs()
    bound = size * (a.shape[1] + 1) * 2.0**-24
    if found.dtype == torch.float16:
        bound = bound + truth(a, b, c).abs() * 2.0**-11 + 2.0**-25
    assert ((found.double() - truth(a, b, c)).abs() <= bound).all()


@forms
@pytest.mark.parametrize("in_place", [False, True])
def test_product(shape: str, inputs: str, sums: str, in_place: bool) -> None:
    given = operands(shape, inputs, sums)
    found = product(shape, inputs, sums, *given, in_place=in_place)
    check(found, *given)


@forms
def test_small_integers_are_exact(shape: str, inputs: str, sums: str) -> None:
    k = int(shape.split("k")[1])
    generator = torch.Generator().manual_seed(3)
    a = torch.randint(-7, 8, (ROWS, k), generator=generator).to(TYPES[inputs])
    b = torch.randint(-7, 8, (k, COLUMNS), generator=generator).to(TYPES[inputs])
    c = torch.randint(-99, 99, (ROWS, COLUMNS), generator=generator).to(TYPES[sums])
    found = product(shape, inputs, sums, a, b, c)
    assert torch.equal(found.double(), truth(a, b, c))


@forms
def test_what_is_not_finite_stays_in_its_row_and_column(shape: str, inputs: str, sums: str) -> None:
    a, b, c = operands(shape, inputs, sums)
    a[3, 1], b[2, 5], c[9, 6] = float("nan"), float("inf"), float("-inf")
    found = product(shape, inputs, sums, a, b, c)
    assert found[3].isnan().all()
    rest = found[[row for row in range(ROWS) if row != 3]]
    others = [row for row in range(ROWS) if row != 3]
    infinite = torch.sign(a[others, 2].double()) * float("inf")
    assert torch.equal(rest[:, 5].double(), infinite)
    assert found[9, 6] == float("-inf")
    assert rest[:, [0, 1, 2, 3, 4, 7]].isfinite().all()


@pytest.mark.parametrize("inputs", ["f16", "bf16"])
def test_subnormal_inputs_count(inputs: str) -> None:
    dtype = TYPES[inputs]
    tiny = torch.finfo(dtype).smallest_normal * 2.0 ** -(3 if inputs == "bf16" else 9)
    a, b = torch.zeros(ROWS, 16, dtype=dtype), torch.zeros(16, COLUMNS, dtype=dtype)
    a[:, 0], b[0] = tiny, 1.0
    assert (a[:, 0] > 0).all()
    found = product("m16n8k16", inputs, "f32", a, b, torch.zeros(ROWS, COLUMNS))
    assert torch.equal(found.double(), truth(a, b, torch.zeros(ROWS, COLUMNS)))


@pytest.mark.parametrize("shape", ["m16n8k8", "m16n8k4"])
def test_low_bits_of_tf32_count_for_nothing(shape: str) -> None:
    a, b, c = operands(shape, "tf32", "f32")
    low = torch.randint(0, 1 << 13, a.shape, generator=torch.Generator().manual_seed(1))
    changed = (a.view(torch.int32) | low.to(torch.int32)).view(torch.float32)
    assert not torch.equal(changed, a)
    found = product(shape, "tf32", "f32", changed, b, c)
    assert torch.equal(found, product(shape, "tf32", "f32", a, b, c))
    b_changed = (b.view(torch.int32) | 0x1FFF).view(torch.float32)
    assert torch.equal(product(shape, "tf32", "f32", a, b_changed, c), found)


def test_a_sum_of_halves_is_rounded_once() -> None:
    """Not after each product: 2048 and sixteen ones, of which each alone would be lost."""
    a, b = torch.ones(ROWS, 16).half(), torch.ones(16, COLUMNS).half()
    found = product("m16n8k16", "f16", "f16", a, b, torch.full((ROWS, COLUMNS), 2048.0).half())
    assert (found == 2064).all()
    large = torch.full((ROWS, COLUMNS), 65504.0).half()
    assert product("m16n8k16", "f16", "f16", a, b, large).isinf().all()


# --- ldmatrix, stmatrix ---

ROW_BYTES = 16
MATRIX = np.random.default_rng(5).permutation(4 * 64).astype(np.uint16).reshape(4, 8, 8)
# %r0 is the address of row lane % 8 of matrix lane / 8. They lie in an order of their own.
ROW_ADDRESS = """\
xor.b32 %r0, %lane, 5;
shl.b32 %r0, %r0, 4;
mov.b32 %r1, kept;
add.u32 %r0, %r0, %r1;
"""
FILL = """\
mul.wide.u32 %q0, %lane, 16;
add.s64 %q1, %source, %q0;
ld.global.v4.b32 {%a0, %a1, %a2, %a3}, [%q1];
st.shared.v4.b32 [%r0], {%a0, %a1, %a2, %a3};
bar.warp.sync -1;
"""
matrices = pytest.mark.parametrize("count", [1, 2, 4])
turned = pytest.mark.parametrize("trans", ["", ".trans"])


def registers_of(count: int, trans: str) -> np.ndarray:
    """What lanes hold of the matrices: [matrix, lane, half]."""
    taken = MATRIX[:count].transpose(0, 2, 1) if trans else MATRIX[:count]
    lane = np.arange(LANES)
    return np.stack([taken[:, lane // 4, 2 * (lane % 4) + e] for e in (0, 1)], axis=-1)


def word_list(count: int) -> str:
    return "{" + ", ".join(f"%b{i}" for i in range(count)) + "}"


@matrices
@turned
def test_rows_come_to_the_lanes(count: int, trans: str) -> None:
    body = f"{ROW_ADDRESS}{FILL}"
    if count < 4:  # addresses of the other lanes are nobody's
        body += f"setp.ge.u32 %p0, %lane, {8 * count};\n@%p0 mov.u32 %r0, 3;\n"
    body += f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {word_list(count)}, [%r0];\n"
    body += "mul.wide.u32 %q0, %lane, 4;\nadd.s64 %q1, %out, %q0;\n"
    body += "".join(f"st.global.b32 [%q1+{128 * i}], %b{i};\n" for i in range(count))
    text = entry(f"{body}ret;", ("source", "out"), STORAGE)
    _, out = launched(text, [MATRIX.ravel(), np.zeros(count * LANES * 2, np.uint16)])
    np.testing.assert_array_equal(out.reshape(count, LANES, 2), registers_of(count, trans))


@matrices
@turned
def test_lanes_store_rows(count: int, trans: str) -> None:
    body = ROW_ADDRESS + "mul.wide.u32 %q0, %lane, 4;\nadd.s64 %q1, %source, %q0;\n"
    body += "".join(f"ld.global.b32 %b{i}, [%q1+{128 * i}];\n" for i in range(count))
    body += f"stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r0], {word_list(count)};\n"
    body += f"setp.ge.u32 %p0, %lane, {8 * count};\n@%p0 ret;\n"
    body += "ld.shared.v4.b32 {%a0, %a1, %a2, %a3}, [%r0];\nmul.wide.u32 %q0, %lane, 16;\n"
    body += "add.s64 %q1, %out, %q0;\nst.global.v4.b32 [%q1], {%a0, %a1, %a2, %a3};\nret;"
    held = registers_of(count, trans)
    text = entry(body, ("source", "out"), STORAGE)
    _, out = launched(text, [held.ravel(), np.zeros(count * 64, np.uint16)])
    np.testing.assert_array_equal(out.reshape(count, 8, 8), MATRIX[:count])


LOAD = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%b0, %b1, %b2, %b3}, [%r0];\n"
STORE = "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r0], {%b0, %b1, %b2, %b3};\n"


@pytest.mark.parametrize("instruction", [LOAD, STORE], ids=["load", "store"])
def test_wrong_rows_are_faults(instruction: str) -> None:
    def said(before: str, after: str = "", lanes: int = 32) -> str:
        body = f"{ROW_ADDRESS}{before}setp.lt.u32 %p2, %tid_x, {lanes};\n@%p2 {instruction}{after}"
        text = entry(f"{body}ret;", registers=STORAGE)
        with pytest.raises(ptx_machine.Fault) as caught:
            launched(text, [np.zeros(1, np.uint32)], threads=64)
        return str(caught.value)

    only = "setp.eq.u32 %p0, %tid_x, 9;\n@%p0 add.u32 %r0, %r0, "
    assert "not a multiple of 16" in said(f"{only}8;\n")
    assert "byte 704 of shared memory of 512 bytes" in said(f"{only}512;\n")
    assert "never come here" in said("", lanes=31)
    # Thread 40 is in the other warp.
    own = "setp.eq.u32 %p1, %tid_x, 40;\n"
    store, load = "@%p1 st.shared.b16 [kept+16], 1;\n", "@%p1 ld.shared.b8 %r5, [kept+31];\n"
    assert "bytes 16 to 17 of shared memory" in said(own + store)
    if instruction is LOAD:
        assert "races" in said(own, store)
    else:
        assert "bytes 31 to 31 of shared memory" in said(own + load)
        assert "races" in said(own, load)


def test_products_need_the_whole_warp_and_a_form_that_is_known() -> None:
    right = (
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%d0, %d1, %d2, %d3}, "
        "{%a0, %a1, %a2, %a3}, {%b0, %b1}, {%c0, %c1, %c2, %c3};"
    )
    text = entry(f"setp.ne.u32 %p0, %lane, 4;\n@%p0 {right}\nret;", registers=STORAGE)
    with pytest.raises(ptx_machine.Fault, match="never come here"):
        launched(text, [np.zeros(1, np.uint32)])
    for wrong in (
        right.replace("row.col", "row.row"),
        right.replace("m16n8k16", "m16n8k32"),
        right.replace("bf16.bf16", "bf16.f16"),
        right.replace("f32.bf16.bf16.f32", "f16.bf16.bf16.f16"),
        right.replace("%b0, %b1", "%b0"),
        right.replace("%a0, %a1, %a2, %a3", "%a0, %a1"),
        right.replace("%c3", "%w3"),
    ):
        text = entry(f"{wrong}\nret;", registers=STORAGE)
        line = 1 + text[: text.index(wrong)].count("\n")
        with pytest.raises(ptx_machine.Fault, match=rf"\bline {line}\b"):
            ptx_machine.load(text)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_and_products_fit_together(dtype: torch.dtype) -> None:
    """A [16, 16] by rows, B [16, 8] turned: the way in which every kernel here multiplies."""
    a, b, c = operands("m16n8k16", "f16" if dtype == torch.float16 else "bf16", "f32")
    name = {torch.float16: "f16", torch.bfloat16: "bf16"}[dtype]
    body = "mov.b32 %r1, kept;\nmul.wide.u32 %q0, %lane, 16;\n"
    # Rows of A have two vectors, a lane each; those of B one.
    body += "add.s64 %q1, %a_at, %q0;\nld.global.v4.b32 {%a0, %a1, %a2, %a3}, [%q1];\n"
    body += "shl.b32 %r2, %lane, 4;\nadd.u32 %r2, %r2, %r1;\n"
    body += "st.shared.v4.b32 [%r2], {%a0, %a1, %a2, %a3};\nbar.sync 0;\n"
    body += "and.b32 %r3, %lane, 15;\nshl.b32 %r3, %r3, 5;\nshr.u32 %r4, %lane, 4;\n"
    body += "shl.b32 %r4, %r4, 4;\nadd.u32 %r3, %r3, %r4;\nadd.u32 %r3, %r3, %r1;\n"
    body += "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%a0, %a1, %a2, %a3}, [%r3];\nbar.sync 0;\n"
    body += "setp.lt.u32 %p0, %lane, 16;\nadd.s64 %q1, %b_at, %q0;\n"
    body += "@%p0 ld.global.v4.b32 {%c0, %c1, %c2, %c3}, [%q1];\n"
    body += "@%p0 st.shared.v4.b32 [%r2], {%c0, %c1, %c2, %c3};\nbar.sync 0;\n"
    body += "ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%b0, %b1}, [%r2];\n"
    body += f"mma.sync.aligned.m16n8k16.row.col.f32.{name}.{name}.f32 {{%d0, %d1, %d2, %d3}}, "
    body += "{%a0, %a1, %a2, %a3}, {%b0, %b1}, "
    body += "{0f00000000, 0f00000000, 0f00000000, 0f00000000};\n"
    body += "mul.wide.u32 %q0, %lane, 4;\nadd.s64 %q1, %out, %q0;\n"
    body += "".join(f"st.global.b32 [%q1+{128 * i}], %d{i};\n" for i in range(4))
    text = entry(f"{body}ret;", ("a_at", "b_at", "out"), STORAGE)
    values = [each.view(torch.int16).numpy().view(np.uint16).ravel() for each in (a, b)]
    *_, out = launched(text, [*values, np.zeros(4 * LANES, np.uint32)])
    check(
        gathered(out.reshape(4, LANES), torch.float32, fragment_of_sums("f32")),
        a,
        b,
        torch.zeros_like(c),
    )
