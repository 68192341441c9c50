"""The Triton kernels of masked_softmax and concat_memory, interpreted. Cases: `small_ops.py`.

Run by `test_triton_small_ops.py` as a pytest file of its own in a process with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import pytest
import torch
from quick_interpreter import speed_up
from small_ops import (
    CASES,
    MEMORY,
    MEMORY_WIDTHS,
    REFUSED,
    REFUSED_MEMORY,
    Case,
    check_case,
    check_keep,
    check_memory,
    check_refused,
    check_refused_memory,
)

from xlnet_fast import philox
from xlnet_fast.errors import ArgumentError
from xlnet_fast.kernels.triton import INTERPRETED, concat_memory, masked_softmax
from xlnet_fast.kernels.triton import masked_softmax_launch as softmax_launch
from xlnet_fast.kernels.triton import philox as philox_kernel

SWEEPS = (16, 32, False)
"""A tile that makes several steps of few keys."""
DTYPES = ("float32", "float16")
PHILOX_SEEDS = (0, -1, 2**63 - 1, 0x243F6A8885A308D3)
PHILOX_MASKS = {  # p, heads, rows, keys, batch elements
    "ragged": (0.1, 3, (5, 28), 133, (1, 3)),
    "whole": (0.5, 1, (0, 16), 256, (0, 1)),
    "one-key": (0.3, 2, (7, 8), 1, (0, 2)),
    "few-keys": (0.999, 2, (0, 17), 5, (3, 4)),
    "nothing-dropped": (0.0, 1, (2, 4), 9, (0, 1)),
    "far": (0.2, 5, (2**31 - 9, 2**31 - 2), 6, (2**28, 2**28 + 1)),
    "empty": (0.2, 2, (3, 3), 6, (0, 1)),
}
# The dtypes share all branches, and each case costs a GPU machine two compilations in each of them.
IN_EVERY_DTYPE = (
    "masks-none", "masks-every", "masks-every-self", "masks-every-sweeps", "dropout-every",
    "shapes-positions-absent", "shapes-2000", "hostile-large-scores", "hostile-nan-hidden-sweeps",
)  # fmt: skip
RUNS = [(name, "float32") for name in CASES] + [(name, "float16") for name in IN_EVERY_DTYPE]
TESTS = (
    len(RUNS) + 2 * len(MEMORY) * len(MEMORY_WIDTHS) + 2 + len(REFUSED) + len(REFUSED_MEMORY)
    + 2 + len(PHILOX_MASKS) + 2
)  # fmt: skip
"""How many tests there are here."""

if INTERPRETED:
    speed_up()

interpreted = pytest.mark.skipif(
    not INTERPRETED, reason="needs TRITON_INTERPRET=1: run by the file beside"
)


def use_tile(case: Case, monkeypatch) -> None:
    """Force a case's tile, so that few keys make several steps of the loop over them."""
    if case.sweeps:
        tile = softmax_launch.Tile(*SWEEPS)
        monkeypatch.setattr(softmax_launch, "choose_tile", lambda keys: tile)


@interpreted
@pytest.mark.parametrize(("name", "dtype"), RUNS)
def test_interpreted(name, dtype, monkeypatch):
    use_tile(CASES[name], monkeypatch)
    check_case(name, getattr(torch, dtype), masked_softmax, "cpu")


@interpreted
@pytest.mark.parametrize("widths", MEMORY_WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MEMORY)
def test_interpreted_memory(name, dtype, widths, monkeypatch):
    monkeypatch.setattr(concat_memory, "BLOCK", 128)
    kind = getattr(torch, dtype)
    check_memory(name, widths, kind, kind, concat_memory, "cpu")


@interpreted
@pytest.mark.parametrize(
    ("to", "from_"),
    [("float16", "float32"), ("float32", "float64")],
    ids=["memory-to-half", "memory-from-double"],
)
def test_interpreted_memory_converted(to, from_, monkeypatch):
    monkeypatch.setattr(concat_memory, "BLOCK", 128)
    kinds = (getattr(torch, to), getattr(torch, from_))
    check_memory("memory-last", "aligned", *kinds, concat_memory, "cpu")


@interpreted
@pytest.mark.parametrize(
    "tile",
    [softmax_launch.Tile(16, 128, True), softmax_launch.Tile(*SWEEPS)],
    ids=["keep-whole", "keep-sweeps"],
)
def test_keep_bits(tile, monkeypatch):
    monkeypatch.setattr(softmax_launch, "choose_tile", lambda keys: tile)
    check_keep(masked_softmax, "cpu")


def check_philox(name, device):
    """The kernel's mask is that of plain ATen, bit for bit."""
    p, *sizes = PHILOX_MASKS[name]
    threshold = philox.keep_threshold(p)
    for value in PHILOX_SEEDS:
        seed = torch.tensor([value], device=device)
        made = philox_kernel.keep_mask(seed, threshold, *sizes)
        expected = philox.keep_mask_aten(seed.reshape(()), threshold, *sizes, seed.device)
        assert made.dtype == torch.bool
        assert made.is_contiguous()
        assert torch.equal(made, expected)


@interpreted
@pytest.mark.parametrize("name", PHILOX_MASKS, ids=lambda name: f"philox-{name}")
def test_philox(name):
    check_philox(name, "cpu")


@interpreted
@pytest.mark.parametrize(
    ("seed", "rows"),
    [(torch.zeros(2, dtype=torch.long), 4), (torch.zeros(1, dtype=torch.long), 2**31)],
    ids=["philox-two-seeds", "philox-beyond-32-bits"],
)
def test_philox_refuses(seed, rows):
    with pytest.raises(ArgumentError):
        philox_kernel.keep_mask(seed, 0, 1, (0, rows), 4, (0, 1))


@interpreted
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    check_refused(name, masked_softmax)


@interpreted
@pytest.mark.parametrize("name", REFUSED_MEMORY)
def test_refused_memory(name):
    check_refused_memory(name, concat_memory)
