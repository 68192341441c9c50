"""A kernel that hands values on through scratch memory, compiled with and without barriers."""

from __future__ import annotations

from xlnet_fast.kernels.triton import jit, tl, triton

BARRIERS = {"both": (True, True), "first": (True, False), "second": (False, True),
            "none": (False, False)}  # fmt: skip


@jit()
def _reversing_kernel(
    scratch, x, out, count, FIRST: tl.constexpr, SECOND: tl.constexpr, BLOCK: tl.constexpr
):
    o_x = tl.arange(0, BLOCK)
    for i in range(count):
        tl.store(scratch + o_x, tl.load(x + i * BLOCK + o_x))
        if FIRST:
            tl.debug_barrier()
        tl.store(out + i * BLOCK + o_x, tl.load(scratch + BLOCK - 1 - o_x))
        if SECOND:
            tl.debug_barrier()


def compiled_ptx(arch: int, barriers: str) -> str:
    """The PTX of the kernel for a chip; its first parameter is the scratch memory."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {"scratch": "*fp32", "x": "*fp32", "out": "*fp32", "count": "i32"}
    first, second = BARRIERS[barriers]
    constants = {"FIRST": first, "SECOND": second, "BLOCK": 256}
    source = ASTSource(
        _reversing_kernel,
        signature | dict.fromkeys(constants, "constexpr"),
        {(4 + number,): value for number, value in enumerate(constants.values())},
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", arch, 32), options={"enable_fp_fusion": True}
    )
    return str(compiled.asm["ptx"])
