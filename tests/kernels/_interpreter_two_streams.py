"""The Triton kernels with both streams in one launch, interpreted. Cases: `two_stream_cases.py`.

Run as `_interpreter_rel_attention.py` is.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from _interpreter_rel_attention import interpreted, short_stretches
from attention_cases import Case
from attention_runs import operands
from two_stream_cases import CASES, Streams, check_streams, make_streams

from xlnet_fast.kernels.triton import launch as launch_module
from xlnet_fast.kernels.triton import rel_attention, tiles

__all__ = ["short_stretches"]  # a fixture


def smaller(name: str, targets: int, **sizes: int) -> Streams:
    """A case with fewer rows, heads or batch elements: two tiles of rows and of keys are left."""
    return replace(CASES[name], content=replace(CASES[name].content, **sizes), targets=targets)


HERE = CASES | {
    "streams-pretraining": smaller("streams-pretraining", 20, batch=2, heads=1, rows=33),
    "streams-any-order": smaller("streams-any-order", 17, heads=1),
    "streams-causal": smaller("streams-causal", 5, heads=1),
    "streams-every-position": smaller("streams-every-position", 35, heads=1),
}
RUNS = [(name, "float32") for name in CASES]
RUNS += [(name, "float16") for name in ("streams-any-order", "streams-one-target")]


@interpreted
@pytest.mark.usefixtures("short_stretches")
@pytest.mark.parametrize(("name", "dtype"), RUNS)
def test_streams(name, dtype):
    check_streams(name, getattr(torch, dtype), rel_attention, "cpu", HERE[name])


@interpreted
def test_streams_cost_no_more_tiles_than_their_rows():
    """85 targets take three tiles of 32 rows, not the content stream's eight of 64."""
    case = Streams(Case(batch=1, heads=1, rows=512, head_dim=16), targets=85)
    x = make_streams(case, torch.float32, 0)
    keys, content = operands(x, case.content)
    call = launch_module.Call(keys, [content, replace(content, q=x.q_g, positions=x.positions_g)])
    config = tiles.Config(64, 32, 8, 2)
    assert call.row_tiles(config) == 8 + 3
