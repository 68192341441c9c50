"""Every run that a GPU makes of the kernels, and every case of the emulation, as PTX for sm_80 and
sm_90.

`make ptx` runs this file behind the tests of this folder; plain `pytest` does not collect it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import ptx_cuda
import ptx_machine
import ptx_triton
import test_cuda_rel_attention as emulated
import test_cuda_small_ops as emulated_small
from _interpreter_small_ops import PHILOX_MASKS, check_philox, use_tile
from attention_runs import LEFT_OUT, check_left_out, check_output, check_passes
from shared_compilations import RUNS, STREAM_RUNS, TILE_RUNS, TILE_STRETCH
from small_ops import CASES as SOFTMAX_CASES
from small_ops import MEMORY, MEMORY_WIDTHS, check_case, check_keep, check_memory
from test_triton_small_ops import GPU_RUNS
from two_stream_cases import check_streams

from xlnet_fast.kernels.chips import KIB
from xlnet_fast.kernels.cuda import concat_memory as cuda_memory
from xlnet_fast.kernels.cuda import masked_softmax as cuda_softmax
from xlnet_fast.kernels.cuda import rel_attention as cuda_attention
from xlnet_fast.kernels.triton import concat_memory, launch, masked_softmax, rel_attention, tiles

DTYPES = ("float32", "bfloat16", "float16")


@pytest.fixture(params=[80, 90], ids=["sm_80", "sm_90"])
def triton_arch(request: pytest.FixtureRequest) -> Iterator[int]:
    """Within the test, Triton's kernels run as PTX for this chip on CPU tensors."""
    with ptx_machine.memory(), ptx_triton.running(arch=request.param):
        yield request.param


@pytest.fixture(
    params=[("80", None), ("80", 99 * KIB), ("90a", None)],
    ids=["sm_80", "sm_80-scarce", "sm_90a"],
)
def cuda_runs(request: pytest.FixtureRequest) -> Iterator[bool]:
    """The same of backend ``cuda``, with tiles of either size: whether it is the smaller one."""
    arch, limit = request.param
    with ptx_machine.memory(), ptx_cuda.running(arch=arch, shared_limit=limit):
        yield limit is not None


def named(runs: Any) -> list[Any]:
    return [pytest.param(run, id=f"{run.name}-{run.dtype}") for run in runs]


def check(name: str, dtype: torch.dtype, backend: Any, *rest: Any) -> None:
    """The output of the case whose gradients are exactly zero, and so is their bound; of others
    those too.
    """
    if name == "shapes-one":
        check_output(name, dtype, backend, "cpu", rest[0])
    else:
        check_passes(name, dtype, backend, "cpu", *rest)


# --- Triton ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", named(RUNS))
def test_attention(run, triton_arch):
    check(run.name, getattr(torch, run.dtype), rel_attention, run.case, run.ordered)


@pytest.mark.parametrize("run", named(STREAM_RUNS))
def test_two_streams(run, triton_arch):
    dtype = getattr(torch, run.dtype)
    check_streams(run.name, dtype, rel_attention, "cpu", run.case, run.ordered)


@pytest.mark.parametrize("heavy", TILE_RUNS)
@pytest.mark.parametrize("kernel", tiles.KERNELS)
def test_every_tile(kernel, heavy, triton_arch, monkeypatch):
    """Whatever may be chosen on the chip, with many stretches of keys."""
    monkeypatch.setattr(launch, "STRIP_KEYS", TILE_STRETCH)
    run = TILE_RUNS[heavy]
    found = tiles.candidates(kernel, torch.bfloat16, run.case.head_dim, heavy, triton_arch)
    for config in found:
        with tiles.using(kernel, config):
            check_passes(run.name, torch.bfloat16, rel_attention, "cpu", run.case, run.ordered)


@pytest.mark.parametrize("heavy", TILE_RUNS)
@pytest.mark.parametrize("kernel", tiles.KERNELS)
def test_every_pair(kernel, heavy, triton_arch, monkeypatch):
    """The same of tiles of which two programs share a multiprocessor, which head dim 64 has."""
    found = tiles.paired_tiles(kernel, torch.bfloat16, 64, heavy, triton_arch)
    if not found:
        pytest.skip(f"no pair is listed for {kernel}, heavy={heavy} on sm_{triton_arch}")
    monkeypatch.setattr(launch, "STRIP_KEYS", TILE_STRETCH)
    run = TILE_RUNS[heavy]
    case = replace(run.case, head_dim=64)
    for config in found:
        with tiles.using(kernel, config):
            check_passes(run.name, torch.bfloat16, rel_attention, "cpu", case, run.ordered)


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_a_window_hides_is_left_out(name, triton_arch):
    check_left_out(name, torch.bfloat16, rel_attention, "cpu")


@pytest.mark.parametrize(("name", "dtype"), GPU_RUNS)
def test_softmax(name, dtype, triton_arch, monkeypatch):
    use_tile(SOFTMAX_CASES[name], monkeypatch)
    check_case(name, getattr(torch, dtype), masked_softmax, "cpu")


@pytest.mark.parametrize("name", PHILOX_MASKS)
def test_philox(name, triton_arch):
    check_philox(name, "cpu")


@pytest.mark.parametrize("widths", MEMORY_WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MEMORY)
def test_memory(name, dtype, widths, triton_arch):
    kind = getattr(torch, dtype)
    check_memory(name, widths, kind, kind, concat_memory, "cpu")


# --- CUDA C++ -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "dtype"), emulated.RUNS)
def test_cuda_attention(name, dtype, cuda_runs):
    case = (emulated.ALL | emulated.OWN)[name]
    if cuda_runs and case.head_dim > 64:  # in 99 KiB forward only
        check_output(name, dtype, cuda_attention, "cpu", case)
        with pytest.raises(RuntimeError, match="101376 bytes of shared memory, and the kernel"):
            check_passes(name, dtype, cuda_attention, "cpu", case)
    else:
        check(name, dtype, cuda_attention, case)


@pytest.mark.parametrize(("name", "dtype"), emulated.STREAM_RUNS)
def test_cuda_two_streams(name, dtype, cuda_runs):
    check_streams(name, dtype, cuda_attention, "cpu", emulated.STREAMS[name])


@pytest.mark.parametrize("name", LEFT_OUT)
def test_cuda_leaves_out_what_a_window_hides(name, cuda_runs):
    check_left_out(name, torch.bfloat16, cuda_attention, "cpu")


@pytest.fixture(params=["80", "90a"], ids=["sm_80", "sm_90a"])
def cuda_alone(request: pytest.FixtureRequest) -> Iterator[None]:
    """For kernels that have one size."""
    with ptx_machine.memory(), ptx_cuda.running(arch=request.param):
        yield


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SOFTMAX_CASES)
def test_cuda_softmax(name, dtype, cuda_alone):
    case = emulated_small.of_this_backend(SOFTMAX_CASES[name])
    check_case(name, getattr(torch, dtype), cuda_softmax, "cpu", case)


@pytest.mark.parametrize("keys", [97, 1025])
def test_cuda_keeps_what_the_generator_says(keys, cuda_alone):
    check_keep(cuda_softmax, "cpu", keys)


@pytest.mark.parametrize("widths", MEMORY_WIDTHS)
@pytest.mark.parametrize("from_", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MEMORY)
def test_cuda_memory(name, dtype, from_, widths, cuda_alone):
    kinds = getattr(torch, dtype), getattr(torch, from_)
    check_memory(name, widths, *kinds, cuda_memory, "cpu")
