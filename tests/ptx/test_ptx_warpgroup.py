"""wgmma in the PTX interpreter: what its products are, for every layout of its operands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import ptx_machine
import pytest
import torch
from ptx_warpgroup import (
    AT_A,
    AT_B,
    DONE,
    READY,
    SHARED,
    TYPES,
    Layout,
    gathered_sums,
    image,
    kernel,
    listed,
    registers_of_a,
    run,
    spread_sums,
)

FENCE = "wgmma.fence.sync.aligned;\n"


@dataclass(frozen=True)
class Form:
    """A product: its shape, types and layouts; `a` is None where A is in registers."""

    columns: int
    inputs: str
    b: Layout
    a: Layout | None = None
    sums: str = "f32"
    signs: tuple[int, int] = (1, 1)
    offset: int = 0
    """Bytes by which B begins behind the beginning of its pattern: a later step along k."""

    @property
    def depth(self) -> int:
        return 8 if self.inputs == "tf32" else 16

    @property
    def instruction(self) -> str:
        """With `%d`, `%a`, `%of_a` and `%of_b`, and `%p1` for whether D counts."""
        registers = self.columns // (2 if self.sums == "f32" else 4)
        left = listed("a", 4) if self.a is None else "%of_a"
        turned = [] if self.a is None else [self.a.transposed]
        turned = [] if self.inputs == "tf32" else [*turned, self.b.transposed]
        flags = ", ".join(map(str, [*self.signs, *map(int, turned)]))
        return (
            f"wgmma.mma_async.sync.aligned.m64n{self.columns}k{self.depth}.{self.sums}."
            f"{self.inputs}.{self.inputs} {listed('d', registers)}, {left}, %of_b, %p1, {flags};\n"
        )


FORMS = {
    "rows-128": Form(64, "bf16", Layout(128, stride=1024), Layout(128, stride=1024)),
    "rows-128-apart": Form(24, "f16", Layout(128, stride=3072), Layout(128, stride=2048)),
    "rows-64": Form(16, "f16", Layout(64, stride=512), Layout(64, stride=1536)),
    "rows-32": Form(32, "bf16", Layout(32, stride=256), Layout(32, stride=512)),
    "rows-plain": Form(
        40, "bf16", Layout(16, leading=128, stride=256), Layout(16, leading=2048, stride=128)
    ),
    "columns-128": Form(
        96,
        "bf16",
        Layout(128, True, leading=2048, stride=1024),
        Layout(128, True, stride=3072),
    ),
    "columns-64": Form(
        72,
        "f16",
        Layout(64, True, leading=1024, stride=512),
        Layout(64, True, leading=512, stride=2048),
    ),
    "columns-32": Form(
        40,
        "bf16",
        Layout(32, True, leading=512, stride=256),
        Layout(32, True, leading=768, stride=4096),
    ),
    "columns-plain": Form(
        32,
        "f16",
        Layout(16, True, leading=128, stride=256),
        Layout(16, True, leading=1024, stride=128),
    ),
    "registers-rows": Form(8, "bf16", Layout(128, stride=1024)),
    "registers-columns": Form(256, "f16", Layout(128, True, leading=1024, stride=4096)),
    "later-step": Form(64, "bf16", Layout(128, stride=1024), offset=96),
    "tf32-registers": Form(16, "tf32", Layout(64, stride=512), offset=32),
    "tf32-rows": Form(24, "tf32", Layout(128, stride=1024), Layout(32, stride=256)),
    "half-sums": Form(32, "f16", Layout(128, stride=1024), Layout(64, stride=512), sums="f16"),
    "negative": Form(16, "bf16", Layout(32, stride=256), signs=(-1, 1)),
    "negative-both": Form(
        16, "f16", Layout(32, stride=256), Layout(32, stride=256), signs=(-1, -1)
    ),
}


def operands(form: Form) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random A [64, k], B [n, k] and D [64, n]; those of tf32 have bits that do not count."""
    generator = torch.Generator().manual_seed(form.columns)
    a, b = (
        torch.randn(rows, form.depth, generator=generator).to(TYPES[form.inputs])
        for rows in (64, form.columns)
    )
    return a, b, torch.randn(64, form.columns, generator=generator).to(TYPES[form.sums])


def expected(form: Form, a: torch.Tensor, b: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """D + A B, each sum rounded to fp32, from the first k to the last."""
    if form.inputs == "tf32":
        a, b = ((each.view(torch.int32) & ~0x1FFF).view(torch.float32) for each in (a, b))
    a, b, sums = a.float() * form.signs[0], b.float() * form.signs[1], d.float()
    for k in range(form.depth):
        sums = sums + a[:, k, None] * b[None, :, k]
    return sums.to(d.dtype)


def prepared(form: Form) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, dict[str, int]]:
    """Shared memory, D's and A's registers, and descriptors."""
    a, b, d = operands(form)
    memory = np.full(SHARED, 0xFF, np.uint8)
    # The matrix of which this is a step along k: what is before it is NaN.
    behind = form.offset // b.element_size()
    whole = torch.full((form.columns, behind + form.depth), torch.nan, dtype=b.dtype)
    whole[:, behind:] = b
    image(whole, form.b, AT_B, memory)
    descriptors = {"of_b": form.b.descriptor(AT_B + form.offset)}
    if form.a is not None:
        image(a, form.a, AT_A, memory)
        descriptors["of_a"] = form.a.descriptor(AT_A)
    left = registers_of_a(a) if form.a is None else None
    return memory, spread_sums(d), left, descriptors


@pytest.mark.parametrize("name", FORMS)
def test_product(name: str) -> None:
    form = FORMS[name]
    memory, d, a, descriptors = prepared(form)
    counts = "mov.pred %p1, -1;\n"
    text = kernel(f"{counts}{READY}{FENCE}{form.instruction}{DONE}", len(d), descriptors)
    found = gathered_sums(run(text, memory, d, a, seed=1), TYPES[form.sums])
    torch.testing.assert_close(found, expected(form, *operands(form)), rtol=0, atol=0)


def test_accumulators_that_do_not_count() -> None:
    form = FORMS["registers-rows"]
    memory, d, a, descriptors = prepared(form)
    a_matrix, b_matrix, d_matrix = operands(form)
    right = expected(form, a_matrix, b_matrix, torch.zeros_like(d_matrix))
    twice = form.instruction.replace("%p1", "0") + form.instruction
    for counts, product, times in (
        ("mov.pred %p1, 0;\n", form.instruction, 1),
        ("mov.pred %p1, -1;\n", form.instruction.replace("%p1", "!%p1"), 1),
        ("", form.instruction.replace("%p1", "0"), 1),
        ("mov.pred %p1, -1;\n", twice, 2),
    ):
        text = kernel(f"{counts}{READY}{FENCE}{product}{DONE}", len(d), descriptors)
        found = gathered_sums(run(text, memory, np.full_like(d, 0x7FC00000), a), torch.float32)
        wanted = right if times == 1 else expected(form, a_matrix, b_matrix, right)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_two_warpgroups_of_a_block() -> None:
    """Each has its own rows of A and of D."""
    form = FORMS["registers-rows"]
    memory, d, a, descriptors = prepared(form)
    assert a is not None
    both_d, both_a = (np.concatenate([each, each[::-1]], axis=1) for each in (d, a))
    counts = "mov.pred %p1, -1;\n"
    # 256 threads fill memory twice as far as one buffer goes.
    text = kernel(f"{counts}{READY}{FENCE}{form.instruction}{DONE}", len(d), descriptors, 256)
    text = text.replace("add.u32 %r0, %r0, 512;", "add.u32 %r0, %r0, 1024;")
    text = text.replace("add.s64 %q0, %q0, 512;", "add.s64 %q0, %q0, 1024;")
    text = text.replace(f"%r1, {SHARED // 512};", f"%r1, {SHARED // 1024};")
    found = run(text, memory, both_d, both_a, 256)
    alone = run(
        kernel(f"{counts}{READY}{FENCE}{form.instruction}{DONE}", len(d), descriptors),
        memory, d, a,
    )  # fmt: skip
    np.testing.assert_array_equal(found[:, :128], alone)
    assert (found[:, 128:] != alone).any()


# (the instruction, what is said of it)
UNKNOWN = {
    "sparse": ("wgmma.mma_async.sp.sync.aligned.m64n8k32.f32.f16.f16 {%d0}, %of_b;", "not known"),
    "columns": (FORMS["registers-rows"].instruction.replace("n8", "n12"), "not a product"),
    "too-wide": (FORMS["registers-rows"].instruction.replace("n8", "n264"), "not a product"),
    "depth": (FORMS["registers-rows"].instruction.replace("k16", "k8"), "not a product"),
    "types": (FORMS["registers-rows"].instruction.replace(".bf16.", ".f16."), "not a product"),
    "integers": (
        FORMS["registers-rows"].instruction.replace(".f32.bf16.bf16", ".s32.s8.s8"), "not a product"
    ),
    "registers-of-d": (
        FORMS["registers-rows"].instruction.replace(", %d3}", "}"), "has not 4 registers"
    ),
    "registers-of-a": (
        FORMS["registers-rows"].instruction.replace(", %a3}", "}"), "has not 4 registers"
    ),
    "sign": (FORMS["registers-rows"].instruction.replace("1, 1, 0", "1, 2, 0"), "a number"),
    "operands": (FORMS["registers-rows"].instruction.replace(", 1, 1, 0", ", 1, 1"), "operands"),
    "wait": ("wgmma.wait_group.sync.aligned %r0;", "has not the number"),
    "fence-of-another-proxy": ("fence.proxy.alias;", "not known"),
    "fence-of-global-memory": ("fence.proxy.async.global;", "not known"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known(name: str) -> None:
    instruction, said = UNKNOWN[name]
    with pytest.raises(ptx_machine.Fault, match=said):
        ptx_machine.load(kernel(instruction, 4, {"of_b": 0}))
