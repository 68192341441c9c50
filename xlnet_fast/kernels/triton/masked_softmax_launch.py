"""From the arguments of masked_softmax to those of its kernels, checked; and the tile they take."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError, BackendUnavailable, ShapeError
from xlnet_fast.kernels.triton import why_unavailable
from xlnet_fast.masks import AttentionMask
from xlnet_fast.philox import keep_threshold


@dataclass(frozen=True)
class Tile:
    """Rows and keys of a tile; ``whole`` where a row of keys fits into one."""

    block_m: int
    block_n: int
    whole: bool


# Chosen so that nothing spills (kernels report) and a thread moves 16 bytes at a time; not timed.
TILES = (
    Tile(8, 128, True),
    Tile(4, 512, True),
    Tile(2, 1024, True),
    Tile(2, 512, False),
)
OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True, "maxnreg": 255}


def choose_tile(keys: int) -> Tile:
    """The tile for rows of J keys."""
    return next((tile for tile in TILES if tile.whole and keys <= tile.block_n), TILES[-1])


def launch_arguments(
    scores: Tensor,
    position_scores: Tensor | None,
    segment_scores: Tensor | None,
    segments_q: Tensor | None,
    segments_k: Tensor | None,
    mask: AttentionMask,
    positions: Tensor | None,
    memory_length: int,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    """What both kernels take: operands up to the seed, their strides, sizes and factors."""
    heads, rows, keys = scores.shape[1:]
    width = 0 if position_scores is None else position_scores.shape[3]
    scores = rows_in_order(scores)
    position_scores = None if position_scores is None else rows_in_order(position_scores)
    vectors = [x if x is None else x.contiguous() for x in (segments_q, segments_k, positions)]
    parts = [x if x is None else x.contiguous() for x in mask.tensors]
    if parts[0] is not None:
        parts[0] = parts[0].view(torch.uint8)  # Triton has no pointer to bool
    bits_stride = 0 if mask.bits is None or mask.bits.shape[0] == 1 else rows * -(-keys // 8)
    strides = (
        scores.stride()[:3],
        (0, 0, 0) if position_scores is None else position_scores.stride()[:3],
        bits_stride,
    )
    segment_scores = None if segment_scores is None else segment_scores.contiguous()
    operands = (scores, position_scores, segment_scores)
    dropping = seed if dropout_p > 0.0 else None
    return (
        (*operands, tuple(vectors[:2]), tuple(parts), vectors[2], dropping),
        strides,
        (
            rows, keys, keys - memory_length, width, heads,
            float(scale), keep_threshold(dropout_p) - 2**31, 1.0 / (1.0 - dropout_p),
        ),
    )  # fmt: skip


def constants_of(keys: int, mask: AttentionMask) -> dict[str, Any]:
    tile = choose_tile(keys)
    return {
        "CAUSAL": mask.causal,
        "SAME_LENGTH": mask.same_length,
        "SEE_SELF": mask.see_self and not mask.hides_nothing,
        "BM": tile.block_m,
        "BN": tile.block_n,
        "WHOLE": tile.whole,
        **OPTIONS,
    }


def grid_of(scores: Tensor) -> tuple[int]:
    batch, heads, rows, keys = scores.shape
    return (batch * heads * -(-rows // choose_tile(keys).block_m),)


def rows_in_order(x: Tensor) -> Tensor:
    """``x`` if the elements of a row follow each other, else a copy in which they do."""
    return x if x.stride(-1) == 1 else x.contiguous()


def device_guard(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def check_operands(
    scores: Tensor,
    position_scores: Tensor | None,
    segment_scores: Tensor | None,
    segments_q: Tensor | None,
    segments_k: Tensor | None,
    mask: AttentionMask,
    positions: Tensor | None,
    memory_length: int,
    dropout_p: float,
    seed: Tensor | None,
    others: dict[str, Tensor],
) -> None:
    """Device, dtype and shape of every tensor; ``others`` are shaped like the scores."""
    reason = why_unavailable(scores.device)
    if reason is not None:
        raise BackendUnavailable(reason)
    if scores.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ArgumentError(f"scores has dtype {scores.dtype}, expected float16, bfloat16, float32")
    batch, heads, rows, keys = scores.shape
    if not 0 <= memory_length <= keys:
        raise ShapeError(f"memory_length is {memory_length}, expected 0 to J = {keys}")
    if dropout_p > 0.0 and (seed is None or seed.dtype != torch.int64 or seed.numel() != 1):
        raise ArgumentError(f"dropout_p {dropout_p} needs a seed of one int64, got {seed!r}")
    mask.validate(batch, rows, keys)
    if len({x is None for x in (segment_scores, segments_q, segments_k)}) != 1:
        raise ArgumentError("segment_scores, segments_q, segments_k: give all three or none")
    width = position_scores.shape[-1] if position_scores is not None else 0
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "position_scores": (position_scores, (batch, heads, rows, width)),
        "segment_scores": (segment_scores, (batch, heads, rows)),
        "segments_q": (segments_q, (batch, rows)),
        "segments_k": (segments_k, (batch, keys)),
        "positions": (positions, (batch, rows)),
        **{name: (x, tuple(scores.shape)) for name, x in others.items()},
    }
    for name, (x, shape) in expected.items():
        if x is not None and tuple(x.shape) != shape:
            raise ShapeError(f"{name} has shape {tuple(x.shape)}, expected {shape}")
    parts = zip(("key_padding", "rank_q", "rank_k", "bits"), mask.tensors, strict=True)
    present = {name: x for name, (x, _) in expected.items()} | {f"mask.{n}": x for n, x in parts}
    for name, x in {**present, "seed": seed if dropout_p > 0.0 else None}.items():
        if x is not None and x.device != scores.device:
            raise ArgumentError(f"{name} is on {x.device}, expected {scores.device} as scores")
