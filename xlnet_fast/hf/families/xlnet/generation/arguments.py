"""Tensors of ``generate``: ids, masks, segments, and memory in whatever holds it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.hf.versions import MEMORY_NAME

CACHES = ("cache", "past_key_values", "cache_params")
"""Where ``generate`` takes a cache, in one version or another."""
MEMORIES = ("mems", "past_key_values")
"""Where it takes a memory."""


def check_ids(ids: Any) -> None:
    """(B, I) integers, at least one of each."""
    if not isinstance(ids, Tensor):
        advice = ": generate(**inputs)" if hasattr(ids, "keys") else ""
        raise ArgumentError(
            f"input_ids is a {type(ids).__name__}, expected a tensor (B, I) of integers{advice}"
        )
    if ids.dim() != 2 or not ids.numel():
        raise ShapeError(
            f"input_ids has shape {tuple(ids.shape)}, expected (B, I) with at least one text and "
            "one token; without any input_ids, generate() begins with bos_token_id"
        )
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ArgumentError(f"input_ids has dtype {ids.dtype}, expected integers")


def check_mask(name: str, mask: Any, ids: Tensor, remembers: bool) -> None:
    """(B, I) as ids, or one row for all; of memory too, where there is some."""
    if not isinstance(mask, Tensor):
        raise ArgumentError(
            f"{name} is a {type(mask).__name__}, expected a tensor of shape {tuple(ids.shape)}"
        )
    batch, length = ids.shape
    fits = mask.dim() == 2 and mask.shape[0] in (1, batch)
    if not fits or not (mask.shape[1] == length or (remembers and mask.shape[1] > length)):
        raise ShapeError(
            f"{name} has shape {tuple(mask.shape)}, expected that of input_ids: {(batch, length)}"
        )


def set_segments(kwargs: dict[str, Any], ids: Tensor, remembers: bool, grows: bool) -> None:
    """Give ``token_type_ids`` a column for the token to predict, or leave out what says nothing.

    Args:
        remembers: memory is given, whose tokens are of segment 0.
        grows: further steps read memory, which forgets segments.
    """
    types, (batch, length) = kwargs["token_type_ids"], ids.shape
    fits = isinstance(types, Tensor) and types.dim() == 2 and types.shape[0] in (1, batch)
    if not fits or types.shape[1] not in (length, length + 1):
        shape = tuple(types.shape) if isinstance(types, Tensor) else type(types).__name__
        raise ShapeError(
            f"token_type_ids has shape {shape}, expected that of input_ids: {(batch, length)}"
        )
    types = types.expand(batch, -1)
    alike = types == (0 if remembers else types[:, -1:])
    mask = kwargs.get("attention_mask")
    if mask is not None:
        alike[:, :length] |= mask[:, -length:] < 1
    if bool(alike.all()):  # HF raises at the next step if not at this one
        del kwargs["token_type_ids"]
        return
    if grows:
        raise ArgumentError(
            "token_type_ids of several segments: memory knows no segments, so that the next step "
            "would see others. Give use_mems=False, or leave token_type_ids out"
        )
    if types.shape[1] == length:
        types = torch.cat([types, types[:, -1:]], dim=1)
    kwargs["token_type_ids"] = types


def rename_memory(kwargs: dict[str, Any]) -> None:
    """Memory that was given as a cache has the name under which ``generate`` keeps it."""
    for name in CACHES:
        if name != MEMORY_NAME and is_memory(kwargs.get(name)):
            kwargs.setdefault(MEMORY_NAME, kwargs.pop(name))


def is_memory(value: Any) -> bool:
    """Whether it is (M, B, H) tensors by layer, in whatever holds them, and not HF's cache."""
    return value is not None and (
        isinstance(value, (tuple, list, Tensor))
        or (hasattr(value, "select") and hasattr(value, "__getitem__"))
    )


def texts_of(memory: Any) -> int:
    """B of a memory."""
    return memory.batch if hasattr(memory, "batch") else memory[0].shape[1]


def repeated(memory: Any, times: int, device: torch.device) -> Any:
    """The memory with each text as often, one after the other, as HF repeats prompts."""
    if times == 1:
        return memory
    if hasattr(memory, "select"):
        texts = torch.arange(texts_of(memory), device=device)
        return memory.select(texts.repeat_interleave(times))
    return [layer.repeat_interleave(times, dim=1) for layer in memory]
