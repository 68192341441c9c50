"""The Triton kernels with both streams in one launch, interpreted. Cases: `two_stream_cases.py`.

Run as `_interpreter_rel_attention.py` is.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from _interpreter_rel_attention import interpreted
from attention_cases import Case
from attention_runs import operands
from two_stream_cases import CASES, Streams, check_streams, make_streams

from xlnet_fast.kernels.triton import launch as launch_module
from xlnet_fast.kernels.triton import rel_attention, tiles

DTYPES = ("float32", "float16")


@interpreted
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_streams(name, dtype, monkeypatch):
    monkeypatch.setattr(launch_module, "STRIP_KEYS", 64)
    check_streams(name, getattr(torch, dtype), rel_attention, "cpu")


@interpreted
def test_streams_cost_no_more_tiles_than_their_rows():
    """85 targets take three tiles of 32 rows, not the content stream's eight of 64."""
    case = Streams(Case(batch=1, heads=1, rows=512, head_dim=16), targets=85)
    x = make_streams(case, torch.float32, 0)
    keys, content = operands(x, case.content)
    call = launch_module.Call(keys, [content, replace(content, q=x.q_g, positions=x.positions_g)])
    config = tiles.Config(64, 32, 8, 2)
    assert call.row_tiles(config) == 8 + 3
