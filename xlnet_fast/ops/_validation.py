"""Checks shared by the ops. Each error names the argument, what it is and what it should be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError, ShapeError

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
    if seed is not None and (seed.dtype != torch.int64 or seed.numel() != 1):
        raise ArgumentError(
            f"seed is {seed.dtype} of shape {tuple(seed.shape)}, expected int64 of one element"
        )
