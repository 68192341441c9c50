"""Checks shared by the ops. Each error names the argument, what it is and what it should be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.masks import AttentionMask

_INTEGERS = (torch.int32, torch.int64)


def check_tensor(name: str, x: object, rank: int, letters: str) -> None:
    """x is a tensor of the given rank.

    Raises:
        ArgumentError: not a tensor. ShapeError: another rank.
    """
    if not isinstance(x, Tensor):
        raise ArgumentError(f"{name} must be a tensor ({letters}), got {type(x).__name__}")
    if x.dim() != rank:
        raise ShapeError(
            f"{name} has shape {tuple(x.shape)}, expected {rank} dimensions ({letters})"
        )


def check_shape(name: str, x: Tensor | None, expected: Sequence[int], letters: str) -> None:
    """x, if given, has exactly this shape.

    Raises:
        ShapeError: names the argument, its shape and the expected one.
    """
    if x is None:
        return
    check_tensor(name, x, len(expected), letters)
    if tuple(x.shape) != tuple(expected):
        raise ShapeError(
            f"{name} has shape {tuple(x.shape)}, expected {tuple(expected)} = ({letters})"
        )


def check_float(name: str, x: Tensor) -> None:
    """x has a floating dtype that kernels take.

    Raises:
        ArgumentError: names the dtype.
    """
    if not x.is_floating_point():
        raise ArgumentError(f"{name} has dtype {x.dtype}, expected a floating dtype")


def check_same(reference: str, first: Tensor, others: dict[str, Tensor | None]) -> None:
    """All given tensors share dtype and device with ``first``.

    Raises:
        ArgumentError: names the tensor that differs, and from what.
    """
    for name, x in others.items():
        if x is None:
            continue
        if x.dtype != first.dtype:
            raise ArgumentError(
                f"{name} has dtype {x.dtype}, expected that of {reference}: {first.dtype}"
            )
        check_device(name, x, reference, first)


def check_device(name: str, x: Tensor | None, reference: str, first: Tensor) -> None:
    """x, if given, is on the device of ``first``.

    Raises:
        ArgumentError: names both devices.
    """
    if x is not None and x.device != first.device:
        raise ArgumentError(
            f"{name} is on {x.device}, expected the device of {reference}: {first.device}"
        )


def check_integers(name: str, x: Tensor | None) -> None:
    """x, if given, is int32 or int64.

    Raises:
        ArgumentError: names the dtype.
    """
    if x is not None and x.dtype not in _INTEGERS:
        raise ArgumentError(f"{name} has dtype {x.dtype}, expected int32 or int64")


def check_dropout(dropout_p: float, seed: Tensor | None) -> None:
    """A probability in [0, 1), and a seed where it is positive.

    Raises:
        ArgumentError: names the value, or asks for the seed.
    """
    if not 0.0 <= dropout_p < 1.0:
        raise ArgumentError(f"dropout_p is {dropout_p}, expected 0 <= dropout_p < 1")
    if dropout_p > 0.0 and seed is None:
        raise ArgumentError("dropout_p > 0 needs seed, an int64 tensor of one element")
    if seed is not None and not isinstance(seed, Tensor):
        raise ArgumentError(f"seed is {seed!r}, expected int64 of one element, as a tensor")
    if seed is not None and (seed.dtype != torch.int64 or seed.numel() != 1):
        raise ArgumentError(
            f"seed is {seed.dtype} of shape {tuple(seed.shape)}, expected int64 of one element"
        )


def check_memory_length(
    name: str, queries: int, keys: int, memory_length: int, has_positions: bool
) -> None:
    """0 <= M <= J, and M + I = J where every query row is a current key.

    Raises:
        ShapeError: names the tensor that has the keys, and the three lengths.
    """
    if not has_positions and memory_length + queries != keys:
        raise ShapeError(
            f"{name} has {keys} keys, expected M + I = {memory_length} + {queries} "
            "(without positions every query is a current key)"
        )
    if not 0 <= memory_length <= keys:
        raise ShapeError(f"memory_length is {memory_length}, expected 0 to J = {keys}")


def check_table(name: str, table: int, keys: int, memory_length: int, causal: bool) -> None:
    """A table of positions has the rows that visible keys need: L + J, or J + 1 when causal.

    Raises:
        ShapeError: names the tensor, its rows and the number needed.
    """
    needed = keys + 1 if causal else keys + keys - memory_length
    if table < needed:
        kind = "J + 1, causal" if causal else "L + J"
        raise ShapeError(f"{name} has {table} rows, expected at least {needed} = {kind}")


def check_positions(positions: Tensor | None, current: int) -> None:
    """Positions lie below L, on the CPU, where looking is free; elsewhere kernels clamp.

    Not looked at while a graph is traced; the ops look when it runs, the reference cannot.

    Raises:
        ArgumentError: names the largest position and the number of current keys.
    """
    if positions is None or positions.device.type != "cpu" or positions.numel() == 0:
        return
    if torch.compiler.is_compiling() or type(positions) is not Tensor:
        return
    if int(positions.max()) >= current:
        raise ArgumentError(
            f"positions reach {int(positions.max())}, but the current segment has {current} keys: "
            f"expected at most {current - 1}, or a negative number for an absent row"
        )


def check_mask(
    mask: AttentionMask | None, batch: int, queries: int, keys: int, name: str, first: Tensor
) -> AttentionMask:
    """``mask`` fits (B, I, J) and the device of ``first``; None becomes the empty mask.

    Raises:
        ArgumentError, ShapeError: name the part, what it is and what is expected.
    """
    mask = AttentionMask() if mask is None else mask
    if not isinstance(mask, AttentionMask):
        raise ArgumentError(f"mask must be an AttentionMask, got {type(mask).__name__}")
    mask.validate(batch, queries, keys)
    for part, x in zip(("key_padding", "rank_q", "rank_k", "bits"), mask.tensors, strict=True):
        check_device(f"mask.{part}", x, name, first)
    return mask
