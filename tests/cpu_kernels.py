"""The instruction sets and dtypes that tests of the CPU kernels run over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from xlnet_fast import _extension
from xlnet_fast.kernels import cpu
from xlnet_fast.kernels.cpu import instruction_sets

REASON = cpu.why_unavailable()
REAL = () if REASON is not None else tuple(_extension.require().attention_isa_available())
"""Slowest first: each but the last simulates a CPU that lacks what comes after it."""
ISAS = () if REASON is not None else (*REAL, *_extension.require().attention_isa_emulated())

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def multiplies_bfloat16(isa: str) -> bool:
    """Whether a set is one of bf16 products alone, which hands other dtypes to one before it."""
    return isa.endswith("bf16") or isa.startswith("amx")


PAIRS = [
    pytest.param(isa, dtype, id=f"{isa}-{str(dtype).removeprefix('torch.')}")
    for isa in ISAS
    for dtype in DTYPES
    if dtype == torch.bfloat16 or not multiplies_bfloat16(isa)
]

needs_kernels = pytest.mark.skipif(REASON is not None, reason=str(REASON))
ON_CPU = [pytest.param("cpu", marks=needs_kernels), "sdpa", "reference"]
"""Backends that run on a CPU in fp32, bf16 and fp16; in float64 all but ``cpu``."""
FUSED_ON_CPU = ON_CPU[:2]
each_kernel = pytest.mark.parametrize(("isa", "dtype"), PAIRS, indirect=["isa"])
each_isa = pytest.mark.parametrize("isa", ISAS, indirect=True)


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Within the test, the highest instruction set that is used."""
    with instruction_sets.using(request.param):
        yield request.param
