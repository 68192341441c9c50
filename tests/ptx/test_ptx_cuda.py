"""The CUDA C++ kernels as nvcc compiles them for sm_80, run as PTX: held to the tolerance rule.

The cases are those of the emulation. Of the instantiations there are a few that have every kernel,
dtype and head dim; all of them are in `ptx_every_run.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import ptx_cuda
import ptx_machine
import pytest
import test_cuda_rel_attention as emulated
import torch
from attention_cases import Case
from attention_runs import check_left_out, check_passes
from small_ops import CASES as SOFTMAX_CASES
from small_ops import check_case, check_keep, check_memory
from two_stream_cases import check_streams

from xlnet_fast.kernels.chips import KIB
from xlnet_fast.kernels.cuda import concat_memory, masked_softmax, rel_attention

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CONTENT = Case(rows=33, memory=37, heads=1, segments=True, mask=("padding_left", "see_self"))
LARGE = Case(batch=1, rows=150, memory=60, heads=1)  # several tiles of rows and of keys
OTHERS: dict[str, tuple[torch.dtype, Case]] = {
    # of other dtypes and head dims than those below
    "content-d64": (BF16, replace(CONTENT, head_dim=64)),
    "large-d64": (BF16, replace(LARGE, head_dim=64, dropout_p=0.3, mask=("ranks",))),
    "content-d128": (FP16, replace(CONTENT, head_dim=128)),
}
NAMES = (
    "masks-none", "masks-padding-self", "masks-bits-shared", "masks-same-length-uni",
    "masks-all-self", "masks-bits-hide-all", "shapes-one-row-long-memory", "shapes-groups-2",
    "shapes-strided", "shapes-uni-unmasked", "shapes-positions-absent", "shapes-positions-causal",
    "apart-short", "apart-causal", "apart-hidden-rows", "dropout-masked", "dropout-positions",
    "hostile-nan-padding-self", "hostile-nan-padding-hidden-rows", "hostile-large-scores",
    "window-both", "window-self", "window-chunks", "window-chunks-wide", "window-chunks-speech",
    "window-positions-any", "start-groups", "start-one-head",
)  # fmt: skip
IN_BF16 = {name: emulated.ALL[name] for name in NAMES} | {
    "large-in-order": replace(LARGE, mask=("padding", "causal"), segments=True)
}
"""Cases that take the smallest tile."""
ATTENTION = {name: (BF16, case) for name, case in IN_BF16.items()} | OTHERS
# In bf16, whose kernels without a scarce tile of their own are those of "content-d64".
SCARCE = replace(CONTENT, head_dim=64, mask=("bits",))
SOFTMAX = {
    "masks-every-self": BF16,
    "dropout-every": FP16,
    "shapes-2000": BF16,
    "shapes-positions-absent": FP16,
    "hostile-nan-hidden": BF16,
}
OF_BACKWARD = {f"rel_attention_{part}" for part in ("backward_q", "backward_kv", "backward_r")}
OF_SOFTMAX = {"masked_softmax_forward", "masked_softmax_backward"}


def attention(positions: str | None = None) -> set[str]:
    """The kernels of both passes, for rows in order or at positions."""
    forward = "forward" if positions is None else "forward_positions"
    return {f"rel_attention_{forward}"} | OF_BACKWARD


@pytest.fixture
def launched() -> Iterator[Counter[str]]:
    """Within the test, CPU tensors are a GPU's, and backend ``cuda`` runs PTX on them."""
    with ptx_machine.memory(), ptx_cuda.running() as counted:
        yield counted


def kernels(launched: Counter[str]) -> set[str]:
    """Which kernels ran, without their template's arguments."""
    names = (*attention(), *attention("any"), *OF_SOFTMAX, "concat_memory")
    return {name for name in names for symbol in launched if f"{name}_kernel" in symbol}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name, launched):
    dtype, case = ATTENTION[name]
    check_passes(name, dtype, rel_attention, "cpu", case)
    assert kernels(launched) == attention(case.positions)


def test_attention_in_little_shared_memory():
    with ptx_machine.memory(), ptx_cuda.running(shared_limit=99 * KIB) as launched:
        check_passes("scarce", BF16, rel_attention, "cpu", SCARCE)
    assert kernels(launched) == attention()


@pytest.mark.parametrize("name", emulated.STREAMS)
def test_two_streams(name, launched):
    check_streams(name, BF16, rel_attention, "cpu", emulated.STREAMS[name])


@pytest.mark.parametrize("name", ["masks-all-self", "shapes-positions-absent", "dropout-masked"])
def test_the_same_bits_whatever_the_order_of_warps_and_blocks(name):
    found = []
    for seed in range(3):
        with ptx_machine.memory(), ptx_cuda.running(seed=seed):
            found.append(emulated.results(IN_BF16[name], "cpu"))
    for other in found[1:]:
        emulated.assert_equal(other, found[0])


def test_what_a_window_hides_is_left_out(launched):
    check_left_out("window-plain", BF16, rel_attention, "cpu")


@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax(name, launched):
    check_case(name, SOFTMAX[name], masked_softmax, "cpu", SOFTMAX_CASES[name])
    assert kernels(launched) == OF_SOFTMAX


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
