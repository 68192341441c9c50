"""Tile and launch shapes: measured ones where there are any, safe ones everywhere else."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from xlnet_fast.errors import ArgumentError

KERNELS = ("forward", "backward_q", "backward_kv")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_HEAD_DIM = 128
LONG_KEYS = 1024  # a call with more keys than this is "long"
TUNED_FILE = Path(__file__).with_name("tuned.json")


@dataclass(frozen=True)
class Config:
    """Tile and launch shape of one compiled kernel."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, int | bool]:
        """Compiler options.

        Fused multiply-add is asked for, as its default differs between Triton versions. A register
        limit, even the chip's own, stops ptxas from spilling to fit more blocks on a chip.
        """
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": True,
            "maxnreg": 255,
        }


SAFE: dict[tuple[str, str, str, str], dict[int, list[tuple[int, int, int, int]]]] = {
    # (chip, kernel, dtype class, load) -> block_d -> fields of `Config`, the preferred one first.
    # Found with the kernels report (Triton 3.9): the largest tiles that spill in no loop. None has
    # been timed on a GPU.
    ("small", "forward", "half", "light"): {
        32: [(128, 32, 8, 2), (64, 32, 8, 2)],
        64: [(128, 32, 8, 2), (64, 32, 8, 2)],
        128: [(128, 32, 8, 2), (64, 32, 8, 2)],
    },
    ("small", "forward", "half", "heavy"): {
        32: [(128, 32, 8, 2)],
        64: [(128, 32, 8, 2)],
        128: [(32, 32, 8, 2)],
    },
    ("small", "forward", "fp32", "light"): {
        32: [(64, 32, 8, 2)],
        64: [(64, 32, 8, 2)],
        128: [(32, 32, 8, 2)],
    },
    ("small", "forward", "fp32", "heavy"): {
        32: [(32, 32, 8, 2)],
        64: [(64, 32, 8, 2)],
        128: [(32, 16, 8, 2)],
    },
    ("small", "backward_q", "half", "light"): {
        32: [(64, 32, 8, 2), (32, 32, 8, 2)],
        64: [(32, 32, 8, 2), (32, 16, 8, 2)],
        128: [(32, 32, 8, 2), (32, 16, 8, 2)],
    },
    ("small", "backward_q", "half", "heavy"): {
        32: [(32, 16, 8, 2)],
        64: [(16, 32, 8, 2)],
        128: [(16, 32, 8, 2)],
    },
    ("small", "backward_q", "fp32", "light"): {
        32: [(64, 32, 8, 2)],
        64: [(32, 32, 8, 2)],
        128: [(16, 16, 8, 2)],
    },
    ("small", "backward_q", "fp32", "heavy"): {
        32: [(32, 32, 8, 2)],
        64: [(32, 16, 8, 2)],
        128: [(16, 16, 8, 2)],
    },
    ("small", "backward_kv", "half", "light"): {
        32: [(32, 32, 8, 2), (32, 16, 8, 2)],
        64: [(32, 32, 8, 2)],
        128: [(16, 16, 8, 2)],
    },
    ("small", "backward_kv", "half", "heavy"): {
        32: [(32, 16, 8, 2)],
        64: [(32, 32, 8, 2)],
        128: [(16, 16, 8, 2)],
    },
    ("small", "backward_kv", "fp32", "light"): {
        32: [(32, 32, 8, 2)],
        64: [(32, 32, 8, 2)],
        128: [(16, 16, 8, 2)],
    },
    ("small", "backward_kv", "fp32", "heavy"): {
        32: [(32, 16, 8, 2)],
        64: [(32, 16, 8, 2)],
        128: [(16, 16, 8, 1)],
    },
    ("large", "forward", "half", "light"): {
        32: [(128, 64, 8, 3), (128, 64, 8, 2)],
        64: [(128, 64, 8, 2), (64, 64, 8, 2)],
        128: [(64, 64, 8, 2), (128, 32, 8, 2)],
    },
    ("large", "forward", "half", "heavy"): {
        32: [(64, 32, 8, 2)],
        64: [(64, 64, 8, 2)],
        128: [(64, 32, 8, 2)],
    },
    ("large", "forward", "fp32", "light"): {
        32: [(64, 32, 8, 2)],
        64: [(64, 32, 8, 2)],
        128: [(32, 16, 8, 2)],
    },
    ("large", "forward", "fp32", "heavy"): {
        32: [(64, 32, 8, 2)],
        64: [(64, 32, 8, 2)],
        128: [(32, 16, 8, 2)],
    },
    ("large", "backward_q", "half", "light"): {
        32: [(64, 64, 8, 2), (64, 32, 8, 2)],
        64: [(64, 32, 8, 2), (32, 32, 8, 2)],
        128: [(64, 32, 8, 2), (32, 32, 8, 2)],
    },
    ("large", "backward_q", "half", "heavy"): {
        32: [(64, 32, 8, 2)],
        64: [(64, 32, 8, 2)],
        128: [(16, 32, 8, 2)],
    },
    ("large", "backward_q", "fp32", "light"): {
        32: [(32, 32, 8, 2)],
        64: [(32, 32, 8, 2)],
        128: [(32, 16, 8, 2)],
    },
    ("large", "backward_q", "fp32", "heavy"): {
        32: [(32, 16, 8, 2)],
        64: [(32, 16, 8, 2)],
        128: [(32, 16, 8, 2)],
    },
    ("large", "backward_kv", "half", "light"): {
        32: [(64, 64, 8, 2), (64, 32, 8, 2)],
        64: [(64, 32, 8, 2)],
        128: [(32, 32, 8, 2), (32, 16, 8, 2)],
    },
    ("large", "backward_kv", "half", "heavy"): {
        32: [(32, 16, 8, 2)],
        64: [(32, 32, 8, 2)],
        128: [(32, 16, 8, 2)],
    },
    ("large", "backward_kv", "fp32", "light"): {
        32: [(32, 32, 8, 2)],
        64: [(32, 32, 8, 2)],
        128: [(16, 16, 8, 2)],
    },
    ("large", "backward_kv", "fp32", "heavy"): {
        32: [(32, 16, 8, 2)],
        64: [(16, 16, 8, 2)],
        128: [(16, 16, 8, 2)],
    },
}


def block_d(head_dim: int) -> int:
    """Head dim of the tile: the next power of two, at least 32."""
    return max(32, 1 << (head_dim - 1).bit_length())


def shape_class(rows: int, keys: int) -> str:
    """Whether a call is "long", with more than LONG_KEYS rows or keys, or "short"."""
    return "long" if max(rows, keys) > LONG_KEYS else "short"


def choose_config(
    kernel: str,
    dtype: torch.dtype,
    head_dim: int,
    heavy: bool,
    arch: int,
    shape: str = "long",
    gpu: str | None = None,
) -> Config:
    """The tile of a kernel: forced by `using`, else measured on this GPU, else safe on the chip.

    Args:
        kernel: one of `KERNELS`.
        dtype: torch.float16, bfloat16 or float32.
        head_dim: 1..128.
        heavy: whether something takes part that costs registers: dropout, ranks, bits, positions,
            a second stream, or padding without `see_self`.
        arch: compute capability as one number, 90 for 9.0; at least 80.
        shape: "short" or "long", see `shape_class`.
        gpu: what the driver calls it, as in the table of measured tiles.

    Raises:
        ArgumentError: a kernel, dtype, head dim or chip there is no tile for.
    """
    _check(kernel, dtype, head_dim, arch)
    if kernel in _forced:
        return _forced[kernel]
    key = tuned_key(kernel, dtype, head_dim, heavy, shape)
    measured = load_tuned().get(gpu or "", {}).get(key)
    if measured is not None:
        return Config(*measured)
    return candidates(kernel, dtype, head_dim, heavy, arch)[0]


def candidates(
    kernel: str, dtype: torch.dtype, head_dim: int, heavy: bool, arch: int
) -> tuple[Config, ...]:
    """Tiles that fit the chip, the safe one first: what `benchmarks.tune` tries.

    Raises:
        ArgumentError: a kernel, dtype, head dim or chip there is no tile for.
    """
    _check(kernel, dtype, head_dim, arch)
    # Chips with wgmma or tcgen05, which take operands from shared memory, need fewer registers.
    chip = "large" if 90 <= arch < 120 else "small"
    kind = "fp32" if dtype == torch.float32 else "half"
    tiles = SAFE[chip, kernel, kind, "heavy" if heavy else "light"][block_d(head_dim)]
    return tuple(Config(*tile) for tile in tiles)


def tuned_key(kernel: str, dtype: torch.dtype, head_dim: int, heavy: bool, shape: str) -> str:
    """The name of an entry of the table of measured tiles."""
    name = str(dtype).removeprefix("torch.")
    return f"{kernel}/{name}/{head_dim}/{'heavy' if heavy else 'light'}/{shape}"


@cache
def load_tuned() -> dict[str, dict[str, list[int]]]:
    """The measured tiles: GPU name -> `tuned_key` -> fields of `Config`."""
    tuned: dict[str, dict[str, list[int]]] = json.loads(TUNED_FILE.read_text(encoding="utf-8"))
    return tuned


@contextlib.contextmanager
def using(kernel: str, config: Config) -> Iterator[None]:
    """Force the tile of a kernel within the block, in this process.

    Raises:
        ArgumentError: no kernel has that name.
    """
    if kernel not in KERNELS:
        raise ArgumentError(f"kernel {kernel!r} is not one of {', '.join(KERNELS)}")
    before = _forced.get(kernel)
    _forced[kernel] = config
    try:
        yield
    finally:
        _forced.pop(kernel)
        if before is not None:
            _forced[kernel] = before


_forced: dict[str, Config] = {}


def _check(kernel: str, dtype: torch.dtype, head_dim: int, arch: int) -> None:
    if kernel not in KERNELS:
        raise ArgumentError(f"kernel {kernel!r} is not one of {', '.join(KERNELS)}")
    if dtype not in DTYPES:
        raise ArgumentError(f"dtype {dtype} is not one of {', '.join(map(str, DTYPES))}")
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        raise ArgumentError(f"head dim {head_dim} is not in 1..{MAX_HEAD_DIM}")
    if arch < 80:
        raise ArgumentError(f"sm_{arch} is older than sm_80, the oldest the kernels are made for")
