"""Every kind of fault in many places of the forward and backward kernels' PTX.

`make ptx` runs this file behind the tests of this folder; plain `pytest` does not collect it.
"""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from ptx_harm import runner
from test_ptx_faults import CUDA, KINDS, NOT_OF_TRITON, OF_CUDA, TRITON, Kind, held, spread
from test_ptx_sm_90 import KINDS as KINDS_OF_WARPGROUPS

EVERY = [
    (backend, kernel, name)
    for backend, kernel in (
        TRITON,
        ("triton", "_backward_kv_kernel"),
        ("triton", "_backward_q_kernel"),
        CUDA,
        ("cuda", "rel_attention_backward_kv_kernel"),
        ("cuda", "rel_attention_backward_q_kernel"),
    )
    for name in KINDS
    if not (backend == "triton" and name in NOT_OF_TRITON)
    if backend == "triton" or name in OF_CUDA
]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("backend", "kernel", "name"), EVERY)
def test_faults_in_many_places(backend: str, kernel: str, name: str) -> None:
    check(backend, kernel, 80, KINDS[name])


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", KINDS_OF_WARPGROUPS)
@pytest.mark.parametrize("kernel", ["_forward_kernel", "_backward_kv_kernel", "_backward_q_kernel"])
def test_faults_of_warpgroups_in_many_places(kernel: str, name: str) -> None:
    check("triton", kernel, 90, KINDS_OF_WARPGROUPS[name])


def check(backend: str, kernel: str, arch: int, kind: Kind) -> None:
    found = runner(backend, kernel, arch)
    texts = list(kind.harm(found.lines))
    if not texts:
        pytest.skip(f"{kernel} has no place for it")
    held(found, kind, spread(texts, 12))
