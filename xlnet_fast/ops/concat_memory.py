"""The next segment's memory: ``cache_mem`` of HF, without keeping the longer tensor alive."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xlnet_fast import reference, transforms
from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.ops._contracts import concat_memory as contract
from xlnet_fast.ops._dispatch import choose, request_for, spelled
from xlnet_fast.ops._validation import check_device, check_float, check_shape, check_tensor


def concat_memory(
    hidden: Tensor,
    memory: Tensor | None = None,
    mem_len: int | None = None,
    reuse_len: int | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """The last ``mem_len`` rows of ``[memory; hidden[:reuse_len]]``, detached (HF ``cache_mem``).

    Args:
        hidden: (I, B, H) hidden states of this segment, any floating dtype.
        memory: (M, B, H) memory before this segment, or None. Its floating dtype may be another: it
            is converted to that of ``hidden``.
        mem_len: rows kept, at least 0; None or 0 keeps all.
        reuse_len: only so many first rows of ``hidden`` are remembered; None or 0 means all.
        backend: "auto" or a backend's name.

    Returns:
        (min(mem_len, M + min(reuse_len, I)), B, H), a new tensor that shares no storage.

    Raises:
        ShapeError: wrong rank, or (B, H) differ. ArgumentError: wrong dtype, device or length.
        BackendUnavailable: the named backend cannot run here.
    """
    _check_layer(hidden, memory, "hidden", "memory")
    memories = None if memory is None else [memory]
    return _new_memories([hidden], memories, mem_len, reuse_len, backend)[0]


def concat_memories(
    hidden: Sequence[Tensor],
    memory: Sequence[Tensor] | None = None,
    mem_len: int | None = None,
    reuse_len: int | None = None,
    *,
    backend: str = "auto",
) -> list[Tensor]:
    """`concat_memory` of all layers in one call, which on a GPU is one launch.

    Args:
        hidden: one (I, B, H) tensor per layer, at least one, alike in shape, dtype and device.
        memory: one (M, B, H) tensor per layer, alike in shape and dtype, or None.
        mem_len, reuse_len, backend: as in `concat_memory`.

    Returns:
        One (rows, B, H) tensor per layer: views of one new tensor (layers, rows, B, H), which lives
        as long as any of them and holds nothing else.

    Raises:
        ShapeError, ArgumentError, BackendUnavailable: as `concat_memory`; the number of layers
            differs, or the layers do.
    """
    hidden = _checked_list("hidden", hidden)
    if not hidden:
        raise ArgumentError("hidden is empty, expected one tensor per layer")
    if memory is not None:
        memory = _checked_list("memory", memory)
        if len(memory) != len(hidden):
            raise ShapeError(f"memory has {len(memory)} layers, expected {len(hidden)} as hidden")
    for number, current in enumerate(hidden):
        name, memory_name = f"hidden[{number}]", f"memory[{number}]"
        if memory is not None:  # a None among the layers is no "no memory"
            check_tensor(memory_name, memory[number], 3, "M, B, H")
        _check_layer(current, None if memory is None else memory[number], name, memory_name)
        _check_alike(name, current, "hidden[0]", hidden[0])
        if memory is not None:
            _check_alike(memory_name, memory[number], "memory[0]", memory[0])
    return _new_memories(hidden, memory, mem_len, reuse_len, backend)


def _new_memories(
    hidden: list[Tensor],
    memory: list[Tensor] | None,
    mem_len: int | None,
    reuse_len: int | None,
    backend: str,
) -> list[Tensor]:
    """Of arguments that were checked layer by layer."""
    for name, value in (("mem_len", mem_len), ("reuse_len", reuse_len)):
        if value is not None and value < 0:
            raise ArgumentError(f"{name} is {value}, expected None or a number of rows >= 0")
    first = hidden[0]
    features = () if memory is None else ("memory",)
    choice = choose(
        request_for("concat_memory", first, features=features, backend=backend), backend
    )
    # A traced program (torch.jit.trace) would keep the op's numbers of rows.
    if choice.backend == "reference" or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return [
            reference.concat_memory(
                current, None if memory is None else memory[number], mem_len, reuse_len
            )
            for number, current in enumerate(hidden)
        ]
    kept = min(first.shape[0], reuse_len) if reuse_len else first.shape[0]
    total = kept if memory is None else kept + memory[0].shape[0]
    start = max(0, total - mem_len) if mem_len else 0
    memory = memory or []
    direct = transforms.nobody_looks_on() and transforms.are_plain((*hidden, *memory))
    compute = contract.concat_memories if direct else torch.ops.xlnet_fast.concat_memories
    with torch.no_grad():
        stacked: Tensor = compute(hidden, memory, start, kept, spelled(choice, backend))
        return [stacked.select(0, number) for number in range(len(hidden))]


def _checked_list(name: str, layers: object) -> list[Tensor]:
    if not isinstance(layers, (list, tuple)):
        kind = type(layers).__name__
        raise ArgumentError(f"{name} must be a list of tensors, one per layer, got {kind}")
    return list(layers)


def _check_layer(hidden: Tensor, memory: Tensor | None, name: str, memory_name: str) -> None:
    check_tensor(name, hidden, 3, "I, B, H")
    check_float(name, hidden)
    if memory is not None:
        check_tensor(memory_name, memory, 3, "M, B, H")
        check_shape(memory_name, memory, (memory.shape[0], *hidden.shape[1:]), "M, B, H")
        check_float(memory_name, memory)
        check_device(memory_name, memory, name, hidden)


def _check_alike(name: str, x: Tensor, first_name: str, first: Tensor) -> None:
    if x.shape != first.shape:
        raise ShapeError(
            f"{name} has shape {tuple(x.shape)}, expected that of {first_name}: "
            f"{tuple(first.shape)}"
        )
    if x.dtype != first.dtype:
        raise ArgumentError(
            f"{name} has dtype {x.dtype}, expected that of {first_name}: {first.dtype}"
        )
    check_device(name, x, first_name, first)
