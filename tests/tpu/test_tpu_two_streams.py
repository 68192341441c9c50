"""Both streams by the Pallas kernels in interpret mode, against the float64 reference."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("jax", reason="the TPU kernels need JAX: pip install xlnet-fast[tpu]")

import torch
from attention_cases import Case
from tpu_interpreted import two_stream_attention
from two_stream_cases import CASES, Streams, make_streams
from yardstick import Graph, Yardstick

from xlnet_fast import reference

OURS = {name: case for name, case in CASES.items() if "bits" not in case.content.mask} | {
    "streams-apart": Streams(
        Case(rows=33, memory=32, apart=True, segments=True, mask=("ranks", "padding_left")),
        9,
        "any",
    ),
    "streams-bf16": Streams(
        Case(batch=2, rows=33, memory=17, heads=12, segments=True, mask=("ranks",), dropout_p=0.2),
        9,
    ),
}  # fmt: skip


def problem(case: Streams, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Any]]:
    """Operands and options of ``ops.two_stream_attention``."""
    x = make_streams(case, dtype, seed=3)
    memory = case.content.memory
    names = ("q_g", "v", "k", "r", "r_w_bias", "r_r_bias", "r_s_bias", "seg_embed")
    operands = {"q_h": x.q} | {name: getattr(x, name) for name in names}
    if case.content.apart:
        for name in ("k", "v"):
            both = operands[name]
            operands |= {f"{name}_memory": both[:, :memory], name: both[:, memory:]}
    segments = x.segments_k
    options = {
        "segments": segments, "mask": x.mask, "positions": x.positions_g,
        "scale": case.content.head_dim**-0.5, "dropout_p": case.content.dropout_p,
        "seed": x.seed, "r_start": case.content.r_start,
    }  # fmt: skip
    return {name: value for name, value in operands.items() if value is not None}, options


@pytest.mark.parametrize("name", OURS)
def test_both_streams(name):
    dtype = torch.bfloat16 if name.endswith("bf16") else torch.float32
    operands, options = problem(OURS[name], dtype)
    attend = reference.two_stream_attention
    yardstick = Yardstick(attend, attend, operands, **options)
    yardstick.check(Graph(two_stream_attention, operands, **options))
