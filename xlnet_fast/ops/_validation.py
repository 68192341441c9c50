"""Checks shared by the ops. Each error names the argument, what it is and what it should be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.masks import AttentionMask
from xlnet_fast.philox import seed_dtypes

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
    if seed is not None and (seed.dtype not in seed_dtypes(seed.device) or seed.numel() != 1):
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


def check_sources(
    q: Tensor,
    k: Tensor,
    k_memory: Tensor | None,
    v_memory: Tensor | None,
    memory_length: int | None,
    has_positions: bool,
) -> tuple[int, int]:
    """The numbers of keys, in one tensor (B, J, N, D) or in a memory (B, M, N, D) and k (B, L, ..).

    Returns:
        (J, M).

    Raises:
        ArgumentError: one of k_memory and v_memory is missing, or nothing tells M.
        ShapeError: names the tensor that has the keys, and the lengths.
    """
    apart = k_memory is not None or v_memory is not None
    check_tensor("k", k, 4, "B, L, N, D" if apart else "B, J, N, D")
    queries, keys = q.shape[1], k.shape[1]
    if not apart:
        if memory_length is None and has_positions:
            raise ArgumentError("memory_length must be given together with positions")
        memory_length = keys - queries if memory_length is None else memory_length
        check_memory_length("k", queries, keys, memory_length, has_positions)
        return keys, memory_length
    if k_memory is None or v_memory is None:
        missing = "k_memory" if k_memory is None else "v_memory"
        raise ArgumentError(f"k_memory and v_memory must be given together; missing: {missing}")
    check_tensor("k_memory", k_memory, 4, "B, M, N, D")
    found = k_memory.shape[1]
    if memory_length is not None and memory_length != found:
        raise ShapeError(f"memory_length is {memory_length}, but k_memory has {found} keys")
    if not has_positions and keys != queries:
        raise ShapeError(
            f"k has {keys} keys beside those of k_memory, expected one per query, I = {queries} "
            "(without positions every query is a current key)"
        )
    return found + keys, found


def check_operands(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_memory: Tensor | None,
    v_memory: Tensor | None,
    r: Tensor,
    r_w_bias: Tensor,
    r_r_bias: Tensor,
    r_s_bias: Tensor | None,
    seg_embed: Tensor | None,
) -> None:
    """All floating operands of attention fit (B, I, N, D) and the dtype and device of q.

    Raises:
        ShapeError, ArgumentError: name the argument, what it is and what is expected.
    """
    check_float("q", q)
    batch, _, heads, dim = q.shape
    if dim == 0:
        raise ShapeError(f"q has shape {tuple(q.shape)}, expected a head dim of at least 1")
    check_tensor("v", v, 4, "B, J, N, D" if v_memory is None else "B, L, N, D")
    check_tensor("r_w_bias", r_w_bias, 2, "N, D")
    check_tensor("r_r_bias", r_r_bias, 2, "N, D")
    length = "L" if k_memory is not None else "J"
    for name, x in (("k", k), ("v", v)):
        check_shape(name, x, (batch, k.shape[1], heads, dim), f"B, {length}, N, D")
    if k_memory is not None:
        for name, past in (("k_memory", k_memory), ("v_memory", v_memory)):
            check_shape(name, past, (batch, k_memory.shape[1], heads, dim), "B, M, N, D")
    check_tensor("r", r, 4, "G, P, N, D")
    check_shape(
        "r", r, (*r.shape[:2], heads, dim), "G, P, N, D), or one head for all = (G, P, 1, D"
    )
    groups = r.shape[0]
    if groups == 0 or batch % groups != 0:
        raise ShapeError(f"r has {groups} groups, expected a divisor of the batch size {batch}")
    for name, bias in (("r_w_bias", r_w_bias), ("r_r_bias", r_r_bias), ("r_s_bias", r_s_bias)):
        check_shape(name, bias, (heads, dim), "N, D")
    check_shape("seg_embed", seg_embed, (2, heads, dim), "2, N, D")
    keys = {"k": k, "v": v, "k_memory": k_memory, "v_memory": v_memory, "r": r}
    vectors = {"r_w_bias": r_w_bias, "r_r_bias": r_r_bias, "r_s_bias": r_s_bias}
    check_same("q", q, {**keys, **vectors, "seg_embed": seg_embed})


def check_segments(
    q: Tensor,
    keys: int,
    r_s_bias: Tensor | None,
    seg_embed: Tensor | None,
    segments_q: Tensor | None,
    segments_k: Tensor | None,
) -> None:
    """The four parts of the segment term: all or none, segments (B, I) and (B, J).

    Raises:
        ArgumentError: names the missing ones. ArgumentError, ShapeError: as :func:`check_rows`.
    """
    group = {"r_s_bias": r_s_bias, "seg_embed": seg_embed}
    group |= {"segments_q": segments_q, "segments_k": segments_k}
    missing = [name for name, part in group.items() if part is None]
    if 0 < len(missing) < len(group):
        raise ArgumentError(f"segments need all of {', '.join(group)}; missing: {missing}")
    check_rows("segments_q", segments_q, q, q.shape[1], "B, I")
    check_rows("segments_k", segments_k, q, keys, "B, J")


def check_rows(name: str, x: Tensor | None, q: Tensor, length: int, letters: str) -> None:
    """x, if given, is (B, length) of integers, on the device of q.

    Raises:
        ShapeError, ArgumentError: name the argument, what it is and what is expected.
    """
    check_shape(name, x, (q.shape[0], length), letters)
    check_integers(name, x)
    check_device(name, x, "q", q)


def check_table(
    name: str, table: int, keys: int, memory_length: int, causal: bool, start: int = 0
) -> None:
    """A table of positions has the rows that visible keys need: L + J, or J + 1 when causal.

    Less one where its row 0 is that of distance J - 1, at ``start`` 1.

    Raises:
        ArgumentError: ``start`` is neither 0 nor 1.
        ShapeError: names the tensor, its rows and the number needed.
    """
    if isinstance(start, bool) or not isinstance(start, (int, torch.SymInt)) or not 0 <= start <= 1:
        raise ArgumentError(
            f"r_start is {start!r}, expected 0, row 0 of r encoding the distance J, or 1: J - 1"
        )
    needed = (keys + 1 if causal else keys + keys - memory_length) - start
    if table < needed:
        kind = ("J + 1" if causal else "L + J") + (" - r_start" if start else "")
        kind += ", causal" if causal else ""
        raise ShapeError(f"{name} has {table} rows, expected at least {needed} = {kind}")


def check_positions(positions: Tensor | None, current: int) -> None:
    """Positions lie below L, on the CPU, where looking is free; elsewhere kernels clamp.

    The registered ops look when they run; who calls the reference looks where it ``can_look``.

    Raises:
        ArgumentError: names the largest position and the number of current keys.
    """
    if positions is None or positions.device.type != "cpu" or positions.numel() == 0:
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
