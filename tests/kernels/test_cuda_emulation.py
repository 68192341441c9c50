"""The emulation of a GPU that proves the CUDA kernels: it finds each fault, and only faults.

Every kernel of `emulator_kernels.cu` runs twice: right, and wrong in the one way of its name.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import cuda_emulation
import native_modules
import pytest
import torch
from torch import Tensor

KERNELS = Path(__file__).with_name("emulator_kernels.cu")
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
RACE = "is (read|written), and another thread (wrote|used) it without a barrier since"
WRONG = {
    "between_warps": RACE,
    "between_warps_by_a_warp_barrier": RACE,
    "between_lanes": RACE,
    "overwritten": RACE,
    "matrix_of_others": RACE,
    "leaving_before_a_barrier": "wait for others that never come: 32 at a barrier of the block",
    "votes": "lanes of a warp meet in different operations",
    "meeting_in_two_operations": "lanes of a warp meet in different operations",
    "parting": "lanes of a warp part: some are at a barrier of the block, others at an operation",
    "reading_beyond": "a read of 4 bytes is outside .* 4 bytes beyond a tensor of 256 bytes",
    "reading_before": "a read of 4 bytes is outside .* 4 bytes before a tensor of 256 bytes",
    "writing_what_is_read": "a write of 4 bytes is outside .* it lies in a tensor that is only",
    "misaligned_global": "an access of 16 bytes to global memory is misaligned",
    "misaligned_shared": "an access of 4 bytes to shared memory at offset .* is misaligned",
    "beyond_shared": "an access to shared memory at offset 4096 is beyond its 4096 bytes",
    "copying": "shared memory is read while a copy to it is under way",
    "waiting_for_the_group_before": "shared memory is read while a copy to it is under way",
    "overwriting_a_copy": "shared memory is written while a copy to it is under way",
    "copies_of_others": RACE,
    "never_waiting": "a copy is under way when its thread ends",
    "copying_from_beyond": "a read of 16 bytes is outside .* 16 bytes beyond a tensor of 256 bytes",
}
"""By kernel, what the emulation says where it is wrong."""
RIGHT_ALONE = ["unwritten_shared"]
THREADS = torch.arange(64)
RESULTS: dict[str, Tensor] = {
    "between_warps": THREADS ^ 32,
    "between_warps_by_a_warp_barrier": THREADS ^ 32,
    "between_lanes": THREADS ^ 1,
    "overwritten": THREADS ^ 1,
    "meeting_in_two_operations": (THREADS ^ 1) % 32,
    "parting": (THREADS ^ 1) % 32,
    "votes": torch.ones(64),
    "copying": torch.where(THREADS % 2 == 0, 7.0, 0.0),  # zeros where a copy reads nothing
    "waiting_for_the_group_before": torch.full((64,), 7.0),
    "copies_of_others": torch.full((64,), 7.0),
}
"""By kernel, what its threads write where it is right and that says something."""


def build_kernels(define: str) -> ModuleType:
    return cuda_emulation.build_or_skip(
        defines=[define] if define else [],
        only=lambda path: path.parent.name == "emulation" and "bindings" not in path.name,
        extra=[KERNELS],
        name="_emulator_kernels",
    )


@pytest.fixture(scope="session", params=["", "XLNET_FAST_PORTABLE_FIBERS"], ids=["own", "portable"])
def emulator(request: pytest.FixtureRequest) -> ModuleType:
    """The tiny kernels, on both ways to switch from thread to thread."""
    return build_kernels(request.param)


def regions(*tensors: tuple[Tensor, bool]) -> list[tuple[int, int, bool]]:
    return [(x.data_ptr(), x.data_ptr() + x.nbytes, writable) for x, writable in tensors]


def run(emulator: ModuleType, name: str, wrong: bool, downwards: bool = False) -> Tensor:
    """What the 64 threads of a kernel write; they read 64 numbers, the first of which is 7."""
    source, out = torch.full((64,), 7.0), torch.zeros(64)
    emulator.set_regions(regions((source, False), (out, True)))
    emulator.set_downwards(downwards)
    try:
        emulator.run(name, source.data_ptr(), out.data_ptr(), wrong)
    finally:
        emulator.set_downwards(False)
    return out


def test_every_kernel_has_its_test(emulator):
    assert sorted(emulator.names()) == sorted([*WRONG, *RIGHT_ALONE])


@pytest.mark.parametrize("downwards", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_a_fault_is_found(name, downwards, emulator):
    with pytest.raises(RuntimeError, match=rf"block 0: .*{WRONG[name]}"):
        run(emulator, name, True, downwards)


@pytest.mark.parametrize("downwards", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_right_passes(name, downwards, emulator):
    out = run(emulator, name, False, downwards)
    if name in RESULTS:
        assert torch.equal(out, RESULTS[name].float())


def test_a_kernel_runs_after_one_that_failed(emulator):
    for name in WRONG:
        with pytest.raises(RuntimeError):
            run(emulator, name, True)
    assert torch.equal(run(emulator, "between_warps", False), (THREADS ^ 32).float())


def test_unwritten_shared_memory_is_nan(emulator):
    run(emulator, "between_warps", False)  # leaves numbers behind, if anything does
    assert run(emulator, "unwritten_shared", False).isnan().all()


# --- matrices -------------------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices(transposed, emulator):
    """Lane l holds of matrix m its row (or column) l / 4, elements 2 (l % 4) and the next."""
    rows = torch.arange(4 * 64, dtype=torch.int16).view(4, 8, 8)
    out = torch.zeros(32, 4, 2, dtype=torch.int16)
    emulator.set_regions(regions((rows, False), (out, True)))
    emulator.matrices(rows.data_ptr(), out.data_ptr(), transposed)
    expected = rows.mT if transposed else rows
    assert torch.equal(out, expected.reshape(4, 32, 2).transpose(0, 1))


@HALVES
def test_product(dtype, emulator):
    a, b = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype)
    c = torch.randn(16, 8)
    expected = c.double() + a.double() @ b.double()
    columns = b.T.contiguous()
    emulator.set_regions(regions((a, False), (columns, False), (c, True)))
    pointers = (x.data_ptr() for x in (a, columns, c))
    emulator.product(dtype == torch.bfloat16, *pointers)
    torch.testing.assert_close(c.double(), expected, atol=1e-5, rtol=0)


@HALVES
def test_product_of_small_integers_is_exact(dtype, emulator):
    a, b = torch.randint(-8, 9, (16, 16)).to(dtype), torch.randint(-8, 9, (16, 8)).to(dtype)
    c = torch.randint(-8, 9, (16, 8)).float()
    expected = c + a.float() @ b.float()
    columns = b.T.contiguous()
    emulator.set_regions(regions((a, False), (columns, False), (c, True)))
    pointers = (x.data_ptr() for x in (a, columns, c))
    emulator.product(dtype == torch.bfloat16, *pointers)
    assert torch.equal(c, expected)


# --- conversions ----------------------------------------------------------------------------------


def equal_or_both_nan(actual: Tensor, expected: Tensor) -> bool:
    both_nan = actual.isnan() & expected.isnan()
    same = (actual == expected) & (actual.signbit() == expected.signbit())
    return bool((same | both_nan).all())


def packed(emulator: ModuleType, x: Tensor, dtype: torch.dtype) -> Tensor:
    """A float32 vector of even length as elements of two bytes."""
    words = torch.zeros(x.numel() // 2, dtype=torch.int32)
    emulator.pack(dtype == torch.bfloat16, words.data_ptr(), x.data_ptr(), words.numel())
    return words.view(dtype)


@HALVES
def test_all_values_unpack_and_pack(dtype, emulator):
    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    for order in (bits, bits.roll(1)):  # each value in the lower and in the upper half of a word
        values = order.view(dtype)
        floats = torch.zeros(65536)
        emulator.unpack(dtype == torch.bfloat16, order.data_ptr(), floats.data_ptr(), 32768)
        assert equal_or_both_nan(floats, values.float())
        assert equal_or_both_nan(packed(emulator, floats, dtype), values)


@HALVES
def test_rounding_is_to_nearest_even(dtype, emulator):
    """Every value, the middle to the next one, and the floats beside that middle."""
    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    low = bits.view(dtype).float()
    low = low[low.isfinite()]
    low = low[: low.numel() // 2 * 2]
    above = torch.nextafter(low.to(dtype), torch.tensor(torch.inf, dtype=dtype)).float()
    middle = torch.where(above.isfinite(), low / 2 + above / 2, low)
    far = torch.tensor(torch.inf)
    for x in (middle, torch.nextafter(middle, far), torch.nextafter(middle, -far)):
        assert equal_or_both_nan(packed(emulator, x, dtype), x.to(dtype))
    everything = torch.randint(-(2**31), 2**31, (2**20,), dtype=torch.int64).to(torch.int32)
    x = everything.view(torch.float32)
    assert equal_or_both_nan(packed(emulator, x, dtype), x.to(dtype))


def test_what_was_built_is_found_again(emulator, monkeypatch):
    def refuse(target: Path, command: list[str]) -> None:
        raise AssertionError(f"{target.name} is made a second time")

    monkeypatch.setattr(native_modules, "make", refuse)
    assert sorted(build_kernels("").names()) == sorted(emulator.names())


def test_a_changed_header_is_noticed(tmp_path):
    """An object is found by its source and all headers it reaches, not by their folder."""
    copy = tmp_path / "csrc"
    shutil.copytree(cuda_emulation.CSRC, copy)
    source, header = copy / "cuda" / "emulation" / "launch.cpp", copy / "cuda" / "emulation"
    before = cuda_emulation._object(source, (), copy)
    original = cuda_emulation.CSRC / source.relative_to(copy)
    assert before == cuda_emulation._object(original, (), cuda_emulation.CSRC)
    assert before != cuda_emulation._object(source, ("-DMORE",), copy)
    with open(header / "fiber.h", "a") as file:  # reached through launch.h and block.h
        file.write("\n")
    assert before != cuda_emulation._object(source, (), copy)
