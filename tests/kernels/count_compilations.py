"""Counts the compilations that the Triton tests need on a GPU; none is made.

    PYTHONPATH=.:tests:tests/kernels python -m count_compilations [--list]

Every launch of the tests marked `gpu` is recorded by its key (`benchmarks.gpu.compilations`), for
a chip of compute capability 9.0.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import attention_on_gpu
import small_ops
import torch
from _interpreter_small_ops import SWEEPS
from attention_cases import Case, make_inputs
from attention_runs import gradients, launch
from shared_compilations import RUNS, STREAM_RUNS, TILE_RUNS, TILE_STRETCH
from two_stream_cases import make_streams, run_streams

from benchmarks.gpu.compilations import CAPABILITY, Key, recording
from xlnet_fast.kernels.triton import launch as launcher
from xlnet_fast.kernels.triton import masked_softmax, rel_attention, tiles
from xlnet_fast.kernels.triton import masked_softmax_launch as softmax_launch


def compilations() -> dict[Key, str]:
    """Every distinct key, and the first test that needs it."""
    found: dict[Key, str] = {}
    with recording() as keys:
        for label in _launches():
            for key in keys:
                found.setdefault(key, label)
            keys.clear()
    return found


def _launches() -> Iterator[str]:
    """Launch what the tests launch, one test after the other; nothing is computed."""
    for run in RUNS:
        if run.name != "shapes-one":
            _both(run.case, getattr(torch, run.dtype), run.ordered)
        else:
            _forward(run.case, getattr(torch, run.dtype))
        yield f"{run.name} {run.dtype}: {run.profile.label}"
    for stream_run in STREAM_RUNS:
        x = make_streams(stream_run.case, getattr(torch, stream_run.dtype), seed=0)
        run_streams(x, stream_run.case, [x.q, x.q_g], rel_attention, "cpu", stream_run.ordered)
        yield f"{stream_run.name} {stream_run.dtype}: {stream_run.profile.label}"
    yield from _tiles()
    for ordered, dropout_p in ((False, 0.0), (True, 0.0), (True, 0.2)):
        _both(replace(attention_on_gpu.CASE, dropout_p=dropout_p), torch.bfloat16, ordered)
        yield f"public op, dropout {dropout_p}, ordered {ordered}"
    _forward(Case(head_dim=128), torch.bfloat16)  # as in `check_large_offsets`
    yield "large offsets"


def softmax_compilations() -> dict[Key, str]:
    """Those of masked_softmax, and the first case that needs each."""
    from test_triton_small_ops import GPU_RUNS

    found: dict[Key, str] = {}
    before = softmax_launch.choose_tile
    with recording() as keys:
        for name, dtype in GPU_RUNS:
            case = small_ops.CASES[name]
            if case.sweeps:
                softmax_launch.choose_tile = lambda keys: softmax_launch.Tile(*SWEEPS)
            try:
                x = small_ops.make_inputs(case, getattr(torch, dtype), seed=0)
                small_ops.launch(x, case, masked_softmax, "cpu")
            finally:
                softmax_launch.choose_tile = before
            for key in keys:
                found.setdefault(key, f"{name} {dtype}")
            keys.clear()
    return found


def _tiles() -> Iterator[str]:
    before = launcher.STRIP_KEYS
    launcher.STRIP_KEYS = TILE_STRETCH
    try:
        for heavy, run in TILE_RUNS.items():
            for kernel in tiles.KERNELS:
                dim = run.case.head_dim
                for config in tiles.candidates(kernel, torch.bfloat16, dim, heavy, CAPABILITY):
                    with tiles.using(kernel, config):
                        _both(run.case, torch.bfloat16, run.ordered)
                    yield f"tile of {kernel}: {config}"
    finally:
        launcher.STRIP_KEYS = before


def _forward(case: Case, dtype: torch.dtype) -> Any:
    x = make_inputs(case, dtype, seed=0)
    launch(x, case, rel_attention, "cpu")
    return x


def _both(case: Case, dtype: torch.dtype, ordered: bool) -> None:
    x = _forward(case, dtype)
    gradients(x, case, x.q, rel_attention, "cpu", ordered)


def main() -> None:
    """Print how many there are, by kernel."""
    found = compilations() | softmax_compilations()
    if "--list" in sys.argv[1:]:
        for (kernel, _), label in found.items():
            print(f"{kernel:40} {label}")
    print(f"{len(found)} compilations: {dict(Counter(kernel for kernel, _ in found))}")


if __name__ == "__main__":
    main()
