"""The Triton kernels as they are compiled for sm_80, run as PTX: held to the tolerance rule.

A few compilations that together have every kernel, dtype, head dim and feature. The runs that a GPU
makes, all of them, are in `ptx_every_run.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

import ptx_machine
import ptx_triton
from attention_cases import CASES, Case, make_inputs
from attention_runs import check_left_out, check_passes, run_backward, run_forward
from small_ops import CASES as SOFTMAX_CASES
from small_ops import check_case, check_keep, check_memory
from two_stream_cases import CASES as STREAM_CASES
from two_stream_cases import check_streams

from xlnet_fast import philox
from xlnet_fast.kernels.triton import (
    INTERPRETED,
    concat_memory,
    launch,
    masked_softmax,
    rel_attention,
)
from xlnet_fast.kernels.triton import masked_softmax_launch as softmax_launch
from xlnet_fast.kernels.triton import philox as philox_kernel

pytestmark = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET is set")

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
SHORT_STRETCH = 64
"""Keys of a stretch: a call of few keys has several."""
CONTENT = Case(rows=33, memory=37, segments=True, mask=("padding_left", "see_self"))
ATTENTION: dict[str, tuple[torch.dtype, Case, bool]] = {
    # the dtype, the case, whether dr is summed in order
    "content-d64": (FP16, replace(CONTENT, head_dim=64), True),
    "content-d128": (BF16, replace(CONTENT, head_dim=128, heads=1), False),
    "training-d64": (BF16, replace(CONTENT, head_dim=64, heads=1, dropout_p=0.3), False),
    # rows that see no key, in tiles large enough for products of a warpgroup
    "blind-d64": (
        BF16,
        Case(rows=33, memory=7, heads=1, head_dim=64, mask=("padding_all",), dropout_p=0.3),
        True,
    ),
    "bits-causal": (FP16, Case(rows=33, memory=40, heads=1, mask=("bits", "causal")), False),
    "same-length-padding": (
        BF16,
        replace(CASES["masks-same-length-uni"], mask=("causal", "same_length", "padding")),
        True,
    ),
    "ranks-positions-apart": (BF16, CASES["apart-positions"], True),
    "window-chunks": (FP16, CASES["window-chunks"], False),
    "plain-fp32": (FP32, Case(rows=33, memory=40, heads=1), True),
}
PRETRAINING = STREAM_CASES["streams-pretraining"]
STREAMS = {
    "streams-pretraining": (
        BF16,
        replace(PRETRAINING, content=replace(PRETRAINING.content, batch=2)),
        False,
    ),
}
SOFTMAX = {
    # the dtype, the case of `small_ops`
    "masks-every-self": BF16,
    "dropout-every": FP16,
    "masks-every-sweeps": FP16,
    "shapes-positions-absent": BF16,
    "hostile-nan-hidden": FP32,
}
DROPOUT = {
    # p, heads, rows, keys, batch elements
    "ragged": (0.1, 3, (5, 28), 133, (1, 3)),
    "far": (0.2, 5, (2**31 - 9, 2**31 - 2), 6, (2**28, 2**28 + 1)),
}


@pytest.fixture
def launched() -> Iterator[Counter[str]]:
    """Within the test, CPU tensors are a GPU's, and Triton's kernels run as PTX on them."""
    with ptx_machine.memory(), ptx_triton.running() as counted:
        yield counted


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name, launched, monkeypatch):
    dtype, case, ordered = ATTENTION[name]
    monkeypatch.setattr(launch, "STRIP_KEYS", SHORT_STRETCH)
    check_passes(name, dtype, rel_attention, "cpu", case, ordered)
    assert launched == {
        "rel_attention_forward._forward_kernel": 1,
        "rel_attention_backward_q._backward_q_kernel": 1,
        "rel_attention_backward_kv._backward_kv_kernel": 1,
    }


@pytest.mark.parametrize("name", ["ranks-positions-apart", "same-length-padding"])
def test_the_same_bits_whatever_the_order_of_warps_and_blocks(name, monkeypatch):
    """Where dr is summed in order."""
    dtype, case, _ = ATTENTION[name]
    monkeypatch.setattr(launch, "STRIP_KEYS", SHORT_STRETCH)
    found = []
    for seed in range(3):
        with ptx_machine.memory(), ptx_triton.running(seed=seed):
            x = make_inputs(case, dtype, seed=0)
            d_out = torch.randn(x.q.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
            forward = run_forward(x, case, rel_attention, "cpu")
            grads = run_backward(forward, x, case, d_out, rel_attention, deterministic=True)
            found.append({"out": forward.out, **grads})
    for other in found[1:]:
        assert all(torch.equal(other[key], value) for key, value in found[0].items())


@pytest.mark.parametrize("name", STREAMS)
def test_two_streams(name, launched):
    dtype, case, ordered = STREAMS[name]
    check_streams(name, dtype, rel_attention, "cpu", case, ordered)


def test_what_a_window_hides_is_left_out(launched):
    check_left_out("window-plain", BF16, rel_attention, "cpu")


@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax(name, launched, monkeypatch):
    case = SOFTMAX_CASES[name]
    if case.sweeps:  # several steps of few keys, in the tile that long rows take
        long = softmax_launch.Tile(2, 32, False)
        monkeypatch.setattr(softmax_launch, "choose_tile", lambda keys: long)
    check_case(name, SOFTMAX[name], masked_softmax, "cpu")


def test_dropout_of_the_softmax_keeps_what_the_generator_says(launched):
    check_keep(masked_softmax, "cpu")


@pytest.mark.parametrize("name", DROPOUT)
def test_dropout(name, launched):
    p, heads, rows, keys, elements = DROPOUT[name]
    seed, threshold = torch.tensor([0x243F_6A88_85A3_08D3]), philox.keep_threshold(p)
    made = philox_kernel.keep_mask(seed, threshold, heads, rows, keys, elements)
    expected = philox.keep_mask_aten(
        seed.reshape(()), threshold, heads, rows, keys, elements, seed.device
    )
    assert torch.equal(made, expected)
    assert launched == {"philox._keep_kernel": 1}


@pytest.mark.parametrize(
    ("name", "widths", "dtype", "from_"),
    [
        ("memory-reuse", "odd", BF16, BF16),
        ("memory-all", "aligned", FP16, FP16),
        ("memory-first-segment", "odd", FP32, FP32),
        ("memory-last", "aligned", BF16, FP32),
    ],
)
def test_memory(name, widths, dtype, from_, launched):
    check_memory(name, widths, dtype, from_, concat_memory, "cpu")
    assert launched == {"concat_memory._copy_kernel": 1}
