"""What a qualification asks of a backend: which classes of calls, in which order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from xlnet_fast.errors import ArgumentError
from xlnet_fast.ops.qualification.record import (
    CLASSES,
    DIRECTIONS,
    FORWARD,
    head_dim_class,
)

ATTENTION = ("rel_attention", "two_stream_attention")
BACKENDS = {"cuda": ("cuda", "triton", "sdpa"), "cpu": ("cpu", "sdpa")}
"""By type of device, what is qualified there, in this order: sdpa runs whatever its verdict is."""

_DTYPES = {"cuda": ("bfloat16", "float16"), "cpu": ("float32", "bfloat16")}
_SMALL_OPS_DTYPES = {"cuda": ("bfloat16", "float16", "float32"), "cpu": ("float32", "bfloat16")}
_HEAD_DIMS, _MORE_HEAD_DIMS = (64,), (32, 128, 20, 48, 96)


@dataclass(frozen=True)
class Task:
    """One class of calls, forward and backward: a row of the record for each direction.

    Attributes:
        op, operands: of ``record.CLASSES``. dtype: "bfloat16". head_dim: 0 for ops without heads.
    """

    op: str
    operands: str
    dtype: str
    head_dim: int = 0

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch has it."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def features(self) -> frozenset[str]:
        """What a call of this class may have."""
        return CLASSES[self.op][self.operands]

    @property
    def directions(self) -> tuple[str, ...]:
        """A memory carries no gradient."""
        return (FORWARD,) if self.op == "concat_memory" else DIRECTIONS

    @property
    def name(self) -> str:
        """In words, such as "rel_attention memory bfloat16 D=64"."""
        width = f" D={self.head_dim}" if self.head_dim else ""
        return f"{self.op} {self.operands} {self.dtype}{width}"

    def row_keys(self) -> Iterator[tuple[str, ...]]:
        """Of its rows, as ``Row.key``."""
        width = head_dim_class(self.head_dim) if self.head_dim else ""
        for direction in self.directions:
            yield self.op, self.operands, self.dtype, width, direction


def tasks_of(device: str, backend: str, full: bool) -> list[Task]:
    """Everything to ask of a backend, what matters most first.

    Args:
        device: "cuda" or "cpu". full: also fp32 attention on a GPU, and more head dims.
    """
    dtypes = _DTYPES[device] + (("float32",) if full and device == "cuda" else ())
    head_dims = _HEAD_DIMS + (_MORE_HEAD_DIMS if full else ())
    tasks = [
        Task(op, operands, dtype, head_dim)
        for head_dim in head_dims
        for dtype in dtypes
        for op in ATTENTION
        for operands in CLASSES[op]
    ]
    small = ["masked_softmax"]
    if backend != "cpu":  # which has no such kernel: a copy is a copy
        small.append("concat_memory")
    if (device, backend) == ("cpu", "cpu"):
        small.append("linear")
    return tasks + [
        Task(op, operands, dtype)
        for dtype in _SMALL_OPS_DTYPES[device]
        for op in small
        for operands in CLASSES[op]
    ]


def chosen_backends(device: str, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """The backends to qualify on a device, those asked for or all.

    Raises:
        ArgumentError: one that no such device has, or none.
    """
    known = BACKENDS[device]
    if wanted is None:
        return known
    if not wanted:
        raise ArgumentError(f"no backend is given, expected some of: {', '.join(known)}")
    for name in wanted:
        if name not in known:
            raise ArgumentError(
                f"unknown backend {name!r} on {device}, expected one of: {', '.join(known)}"
            )
    return tuple(name for name in known if name in wanted)
