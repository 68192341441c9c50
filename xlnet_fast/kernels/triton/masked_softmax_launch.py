"""From the arguments of masked_softmax to those of its kernels, checked; and the tile they take."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xlnet_fast.errors import BackendUnavailable
from xlnet_fast.kernels.triton import why_unavailable
from xlnet_fast.kernels.triton.launch import window
from xlnet_fast.operands import SoftmaxInputs, rows_in_order
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
    inputs: SoftmaxInputs,
) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    """What both kernels take: operands up to the seed, their strides, sizes and factors."""
    heads, rows, keys = inputs.scores.shape[1:]
    mask, dropout_p = inputs.mask, inputs.dropout_p
    scores, position_scores, segment_scores = inputs.terms
    scores = rows_in_order(scores)
    position_scores = None if position_scores is None else rows_in_order(position_scores)
    integers = (inputs.segments_q, inputs.segments_k, inputs.positions)
    vectors = [x if x is None else x.contiguous() for x in integers]
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
    dropping = inputs.seed if dropout_p > 0.0 else None
    return (
        (*operands, tuple(vectors[:2]), tuple(parts), vectors[2], dropping),
        strides,
        (
            rows, keys, *window(mask, keys, inputs.current), inputs.current, inputs.table, heads,
            float(inputs.scale), keep_threshold(dropout_p) - 2**31, 1.0 / (1.0 - dropout_p),
        ),
    )  # fmt: skip


def constants_of(inputs: SoftmaxInputs) -> dict[str, Any]:
    tile, mask = choose_tile(inputs.scores.shape[3]), inputs.mask
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


def device_guard(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def check_device(device: torch.device) -> None:
    """The kernels run on this device.

    Raises:
        BackendUnavailable: says why not.
    """
    reason = why_unavailable(device)
    if reason is not None:
        raise BackendUnavailable(reason)
