"""What Triton and nvcc make of the kernels for sm_90, run as PTX: held to the tolerance rule.

Triton multiplies by `wgmma` there. A few runs that together have every kernel; all that a GPU makes
are in `ptx_every_run.py`. Faults in the PTX of a forward kernel, of what sm_80 has not, are found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import ptx_cuda
import ptx_machine
import ptx_triton
import test_ptx_cuda
import test_ptx_triton
from attention_runs import check_passes
from ptx_harm import (
    barrier_removed,
    product_waited_for_too_late,
    removed,
    runner,
    swapped_fragment_of_a_warpgroup,
    swizzled_otherwise,
    transposed_in_memory,
)
from small_ops import CASES as SOFTMAX_CASES
from small_ops import check_case
from test_ptx_faults import BOUNDS, COPY, RACE, TRITON, WRONG, Kind, held, spread

from xlnet_fast.kernels.cuda import masked_softmax as cuda_softmax
from xlnet_fast.kernels.cuda import rel_attention as cuda_attention
from xlnet_fast.kernels.triton import INTERPRETED, launch, masked_softmax, rel_attention

pytestmark = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET is set")

ARCH = 90
OF_TRITON = ("content-d64", "blind-d64", "content-d128", "same-length-padding")
OF_CUDA = ("content-d64", "masks-all-self")


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a warp ran an instruction of a family of products, in all launches of the test."""
    counted: Counter[str] = Counter()
    launched = ptx_machine.launch

    def launch(*arguments: Any, **options: Any) -> ptx_machine.Counters:
        counters = launched(*arguments, **options)
        counted.update({family: counters.family(family) for family in ("mma", "wgmma")})
        return counters

    monkeypatch.setattr(ptx_machine, "launch", launch)
    return counted


@pytest.fixture
def triton_runs() -> Iterator[None]:
    with ptx_machine.memory(), ptx_triton.running(arch=ARCH):
        yield


@pytest.fixture
def cuda_runs() -> Iterator[None]:
    with ptx_machine.memory(), ptx_cuda.running(arch="90a"):
        yield


@pytest.mark.parametrize("name", OF_TRITON)
def test_attention_of_triton(name, products, triton_runs, monkeypatch):
    dtype, case, ordered = test_ptx_triton.ATTENTION[name]
    monkeypatch.setattr(launch, "STRIP_KEYS", test_ptx_triton.SHORT_STRETCH)
    check_passes(name, dtype, rel_attention, "cpu", case, ordered)
    assert products["wgmma"] > 0


def test_softmax_of_triton(triton_runs):
    check_case("masks-every-self", torch.bfloat16, masked_softmax, "cpu")


@pytest.mark.parametrize("name", OF_CUDA)
def test_attention_of_cuda(name, products, cuda_runs):
    dtype, case = test_ptx_cuda.ATTENTION[name]
    check_passes(name, dtype, cuda_attention, "cpu", case)
    assert products["mma"] > 0
    assert products["wgmma"] == 0


def test_softmax_of_cuda(cuda_runs):
    name = "dropout-every"
    check_case(name, torch.float16, cuda_softmax, "cpu", SOFTMAX_CASES[name])


# --- deliberate faults ----------------------------------------------------------------------------

UNDER_WAY = "wgmma.mma_async was issued and not waited for|ends while a product is under way"
UNFENCED = "no fence.proxy.async is in between"
REGISTERS = "since the last wgmma.fence|no wgmma.fence before it"
KINDS = {
    "a fence of proxies removed": Kind(removed(r"^fence\.proxy\.async"), UNFENCED, 0.5),
    "a fence of registers removed": Kind(removed(r"^wgmma\.fence"), REGISTERS, 0.5),
    "a wait for products removed": Kind(
        removed(r"^wgmma\.wait_group"), f"{UNDER_WAY}|{REGISTERS}", 0.5
    ),
    "a wait for products one too late": Kind(product_waited_for_too_late, UNDER_WAY, 0.5),
    "a commit of products removed": Kind(removed(r"^wgmma\.commit_group"), UNDER_WAY, 1.0),
    "a product removed": Kind(removed(r"^wgmma\.mma_async"), WRONG, 0.8),
    "a barrier removed": Kind(barrier_removed, f"{RACE}|{COPY}|{UNFENCED}|{UNDER_WAY}", 0.5),
    "an operand in memory transposed": Kind(transposed_in_memory, f"{WRONG}|{RACE}|{BOUNDS}", 0.5),
    "an operand in memory swizzled otherwise": Kind(
        swizzled_otherwise, f"{WRONG}|pattern of its swizzle|{BOUNDS}|{RACE}", 0.5
    ),
    "registers of a left fragment swapped": Kind(swapped_fragment_of_a_warpgroup, WRONG, 0.5),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_fault_in_what_triton_compiles(name: str) -> None:
    found = runner(*TRITON, ARCH)
    kind = KINDS[name]
    held(found, kind, spread(list(kind.harm(found.lines)), 3))
