"""The CUDA C++ kernels as nvcc compiles them for sm_80, run as PTX: held to the tolerance rule.

A few instantiations that together have every kernel, dtype and head dim. All cases of the emulation
with all instantiations are in `ptx_every_run.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import ptx_cuda
import ptx_machine
import pytest
import torch
from attention_cases import CASES, Case
from attention_runs import check_left_out, check_passes
from small_ops import CASES as SOFTMAX_CASES
from small_ops import check_case, check_keep, check_memory
from two_stream_cases import CASES as STREAM_CASES
from two_stream_cases import check_streams

from xlnet_fast.kernels.chips import KIB
from xlnet_fast.kernels.cuda import concat_memory, masked_softmax, rel_attention

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CONTENT = Case(rows=33, memory=37, heads=1, segments=True, mask=("padding_left", "see_self"))
LARGE = Case(batch=1, rows=150, memory=60, heads=1)  # several tiles of rows and of keys
ATTENTION: dict[str, tuple[torch.dtype, Case]] = {
    "masks-all-self": (BF16, CASES["masks-all-self"]),
    "shapes-positions-absent": (BF16, CASES["shapes-positions-absent"]),
    "shapes-strided": (BF16, replace(CASES["shapes-strided"], pad=8)),
    "apart-causal": (BF16, CASES["apart-causal"]),
    "dropout-masked": (BF16, CASES["dropout-masked"]),
    "hostile-nan-padding-hidden-rows": (BF16, CASES["hostile-nan-padding-hidden-rows"]),
    "window-chunks-speech": (BF16, replace(CASES["window-chunks-speech"], heads=1)),
    "large-in-order": (BF16, replace(LARGE, mask=("padding", "causal"), segments=True)),
    "content-d64": (FP16, replace(CONTENT, head_dim=64)),
    "large-d64": (FP16, replace(LARGE, head_dim=64, dropout_p=0.3, mask=("ranks",))),
    "content-d128": (BF16, replace(CONTENT, head_dim=128)),
}
SCARCE = {
    # the dtype, the case: of a block that may have 99 KiB
    "content-d64": (BF16, replace(CONTENT, head_dim=64, mask=("bits",))),
}
SOFTMAX = {
    "masks-every-self": BF16,
    "dropout-every": FP16,
    "shapes-2000": BF16,
    "shapes-positions-absent": FP16,
    "hostile-nan-hidden": BF16,
}


@pytest.fixture
def launched() -> Iterator[Counter[str]]:
    """Within the test, CPU tensors are a GPU's, and backend ``cuda`` runs PTX on them."""
    with ptx_machine.memory(), ptx_cuda.running() as counted:
        yield counted


def kernels(launched: Counter[str]) -> set[str]:
    """Which kernels ran, without their template's arguments."""
    names = ("concat_memory", "masked_softmax_forward", "masked_softmax_backward")
    names += tuple(f"rel_attention_{part}" for part in ("forward", *PASSES))
    return {name for name in names for symbol in launched if f"{name}_kernel" in symbol}


PASSES = ("backward_q", "backward_kv", "backward_r")


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name, launched):
    dtype, case = ATTENTION[name]
    check_passes(name, dtype, rel_attention, "cpu", case)
    assert kernels(launched) == {f"rel_attention_{part}" for part in ("forward", *PASSES)}


@pytest.mark.parametrize("name", SCARCE)
def test_attention_in_little_shared_memory(name):
    dtype, case = SCARCE[name]
    with ptx_machine.memory(), ptx_cuda.running(shared_limit=99 * KIB) as launched:
        check_passes(name, dtype, rel_attention, "cpu", case)
    assert kernels(launched) == {f"rel_attention_{part}" for part in ("forward", *PASSES)}


@pytest.mark.parametrize("name", ["streams-pretraining", "streams-absent"])
def test_two_streams(name, launched):
    check_streams(name, BF16, rel_attention, "cpu", STREAM_CASES[name])


def test_what_a_window_hides_is_left_out(launched):
    check_left_out("window-plain", BF16, rel_attention, "cpu")


@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax(name, launched):
    check_case(name, SOFTMAX[name], masked_softmax, "cpu", SOFTMAX_CASES[name])
    assert kernels(launched) == {"masked_softmax_forward", "masked_softmax_backward"}


def test_dropout_keeps_what_the_generator_says(launched):
    check_keep(masked_softmax, "cpu")


@pytest.mark.parametrize(
    ("name", "widths", "dtype", "from_"),
    [
        ("memory-reuse", "odd", BF16, BF16),
        ("memory-all", "aligned", FP16, FP16),
        ("memory-first-segment", "odd", FP32, FP32),
        ("memory-last", "aligned", BF16, FP32),
        ("memory-last", "odd", FP16, BF16),
    ],
)
def test_memory(name, widths, dtype, from_, launched):
    check_memory(name, widths, dtype, from_, concat_memory, "cpu")
    assert kernels(launched) == {"concat_memory"}
