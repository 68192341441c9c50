"""Calls of ``rel_attention`` and ``two_stream_attention``, hostile ones and ones as models make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from xlnet_fast import ops, reference
from xlnet_fast.masks import AttentionMask, pack_bits
from xlnet_fast.operands import Keys, Queries
from xlnet_fast.qualifier.problems import (
    Far,
    Guards,
    Operands,
    Problem,
    kernels_of,
    moved,
    normal,
    within_nan,
)
from xlnet_fast.qualifier.tasks import Task

DROPOUT_P = 0.2
_SOURCES = ("k", "v", "k_memory", "v_memory")
_SHARED = (*_SOURCES, "r", "r_w_bias", "r_r_bias", "r_s_bias", "seg_embed")


@dataclass(frozen=True)
class Size:
    """Sizes of a call, and what it leaves out of its class.

    Attributes:
        rows: of the content stream, or of the only one. memory: keys before the current ones.
        targets: rows of the query stream, or with positions of the only one; None: all positions.
        without: features of the class that this call does not have.
        strided: whether operands lie head by head with gaps. uni: the short table of "uni".
        far: whether queries, keys and values lie beyond 2^31 elements.
        window, chunk: of the mask, where the class has one. one_table: whether all heads share r.
    """

    batch: int
    rows: int
    memory: int
    heads: int
    targets: int | None = None
    without: frozenset[str] = frozenset()
    strided: bool = False
    see_self: bool = False
    same_length: bool = False
    uni: bool = False
    far: bool = False
    window: tuple[int | None, int | None] = (None, None)
    chunk: int = 1
    one_table: bool = False


_NO_DROPOUT, _BARE = frozenset({"dropout"}), frozenset({"padding", "segments"})
HOSTILE = (
    Size(3, 65, 37, 2, targets=17, strided=True, window=(20, 9)),
    Size(
        2,
        130,
        3,
        1,
        targets=None,
        without=_NO_DROPOUT,
        see_self=True,
        same_length=True,
        window=(30, 0),
        chunk=15,
    ),
    Size(16, 1, 70, 4, targets=1, without=_BARE, uni=True, window=(33, None), one_table=True),
)
"""Ragged sizes: a batch element whose keys are all padded, more than one tile, a single row.

None has a tensor of few elements: the largest error of few is luck, eager's as well as ours.
"""
MORE_HOSTILE = (
    Size(
        4, 33, 200, 2, targets=33, without=_NO_DROPOUT, strided=True, uni=True, window=(None, 5),
    ),
    Size(
        2, 257, 129, 1, targets=70, see_self=True, same_length=True, uni=True, window=(70, 13),
        chunk=14, one_table=True,
    ),
)  # fmt: skip
FAR = Size(2, 40, 9, 1, targets=11, far=True, window=(11, 5))


class AttentionProblem(Problem):
    """One call of an attention op; ``options`` are what the op takes beside the operands."""

    def __init__(self, op: str, operands: Operands, options: dict[str, Any], memory: int) -> None:
        super().__init__(operands)
        self.op, self.options, self.memory = op, options, memory
        self.queries = ("q",) if op == "rel_attention" else ("q_h", "q_g")

    def reference(self, operands: Operands) -> tuple[Tensor, ...]:
        return _tuple(getattr(reference, self.op)(**operands, **self.options))

    def run(self, operands: Operands, backend: str) -> tuple[Tensor, ...]:
        return _tuple(getattr(ops, self.op)(**operands, **self.options, backend=backend))

    def unread(self, grad_outs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        positions = self.options.get("positions")
        if positions is None:
            return tuple(grad_outs)
        absent = (positions < 0)[:, :, None, None]
        return *grad_outs[:-1], grad_outs[-1].masked_fill(absent, float("nan"))

    def launch(
        self, backend: str, guards: Guards, grad_outs: Sequence[Tensor] | None
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        kernels, keys, streams = kernels_of("rel_attention", backend), self.keys(), self.streams()
        outs = [guards.like(f"out {n}", stream.q) for n, stream in enumerate(streams)]
        recomputes = backend in ("cpu", "sdpa")
        shapes = [
            (0,) if recomputes else (q.shape[0], q.shape[2], q.shape[1])
            for q in (stream.q for stream in streams)
        ]
        stats = [
            guards.empty(f"statistics {n}", shape, None, torch.float32, outs[0].device)
            for n, shape in enumerate(shapes)
        ]
        kernels.rel_attention_forward(keys, streams, outs, stats)
        if grad_outs is None:
            return tuple(outs), {}
        grads = {name: guards.like(f"d {name}", x) for name, x in self.operands.items()}
        wanted = [grads.get(name) for name in (*self.queries, *_SHARED)]
        kernels.rel_attention_backward(
            keys, streams, outs, stats, self.unread(grad_outs), wanted, True
        )
        return tuple(outs), grads

    def keys(self) -> Keys:
        """What the kernels take for all rows."""
        segments = self.options.get("segments", self.options.get("segments_k"))
        return Keys(
            **{name: self.operands.get(name) for name in _SHARED},  # type: ignore[arg-type]
            segments=segments,
            memory_length=self.memory,
            scale=self.options["scale"],
            dropout_p=self.options["dropout_p"],
            r_start=self.options.get("r_start", 0),
        )

    def streams(self) -> tuple[Queries, ...]:
        """What the kernels take for the rows of each stream."""
        options = self.options
        mask, positions, seed = options["mask"], options["positions"], options["seed"]
        first = self.operands[self.queries[0]]
        if self.op == "rel_attention":
            return (Queries(first, options.get("segments_q"), mask, positions, seed),)
        segments = options.get("segments")
        segments = None if segments is None else segments[:, self.memory :]
        content, query = (replace(mask, see_self=see_self) for see_self in (True, False))
        other = None if seed is None else seed + 1
        return (
            Queries(first, segments, content, None, seed),
            Queries(self.operands["q_g"], segments, query, positions, other, by_position=True),
        )


def attention_problem(
    task: Task, size: Size, device: torch.device, seed: int = 0, hostile: bool = True
) -> AttentionProblem:
    """A call of a class.

    Args:
        hostile: NaN in padded keys and around operands, rows that see no key, absent rows; else a
            call as a model makes it.
    """
    generator = torch.Generator().manual_seed(seed)
    has = task.features - size.without
    one_stream = task.op == "rel_attention"
    length = size.rows
    positions = None
    if "positions" in has and size.targets is not None:
        positions = _positions(size, length, generator, hostile)
    elif "positions" in has and not one_stream and not hostile:
        raise ValueError("a model names the rows of its query stream")
    keys = size.memory + length
    own_rows = length if positions is None else positions.shape[1]
    tensors = _operands(task, size, has, keys, own_rows, generator)
    mask = _mask(size, has, keys, generator, hostile)
    if hostile and mask.key_padding is not None:
        for name in ("k", "v"):
            tensors[name][mask.key_padding] = float("nan")
    options: dict[str, Any] = {"positions": positions, "scale": float(task.head_dim) ** -0.5}
    segments = _segments(size, keys, generator) if "segments" in has else None
    if one_stream:
        options |= _one_stream(mask, segments, positions, size.memory)
    else:
        options |= {"mask": mask, "segments": segments}
    drops = "dropout" in has
    options["dropout_p"] = DROPOUT_P if drops else 0.0
    options["seed"] = torch.tensor(0x1234_5678_9ABC + seed) if drops else None
    if "memory" in has:
        options.pop("memory_length", None)
    if "start" in has:
        options["r_start"] = 1
    operands = _laid_out(tensors, size, has, device, hostile)
    return AttentionProblem(task.op, operands, _on(options, device), size.memory)


def _positions(size: Size, length: int, generator: torch.Generator, hostile: bool) -> Tensor:
    """Distinct positions, in any order and some rows absent, or as a model gives them, sorted."""
    count = min(size.targets or length, length)
    rows = [torch.randperm(length, generator=generator)[:count] for _ in range(size.batch)]
    positions = torch.stack(rows)
    if not hostile:
        return positions.sort(dim=1).values
    if count > 1:
        positions[:, ::5] = -1
    return positions


def _operands(
    task: Task,
    size: Size,
    has: frozenset[str],
    keys: int,
    own_rows: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """By name; keys and values of memory and current segment still together."""
    heads, dim = size.heads, task.head_dim

    def draw(*shape: int) -> Tensor:
        return normal(generator, task.torch_dtype, *shape)

    if task.op == "rel_attention":
        tensors = {"q": draw(size.batch, own_rows, heads, dim)}
    else:
        tensors = {"q_h": draw(size.batch, size.rows, heads, dim)}
        tensors["q_g"] = draw(size.batch, own_rows, heads, dim)
    tensors |= {name: draw(size.batch, keys, heads, dim) for name in ("k", "v")}
    groups = 1
    if "groups" in has:
        groups = 2 if size.batch % 2 == 0 else size.batch
    table = keys + (1 if size.uni and "causal" in has else size.rows) - ("start" in has)
    tensors["r"] = draw(groups, table, heads, dim)
    tensors |= {name: draw(heads, dim) for name in ("r_w_bias", "r_r_bias")}
    if "segments" in has:
        tensors |= {"r_s_bias": draw(heads, dim), "seg_embed": draw(2, heads, dim)}
    return tensors


def _mask(
    size: Size, has: frozenset[str], keys: int, generator: torch.Generator, hostile: bool
) -> AttentionMask:
    """Over all positions of the current segment; rows at positions of their own take theirs."""
    parts: dict[str, Any] = {"see_self": size.see_self}
    batch, length = size.batch, size.rows
    if "padding" in has:
        parts["key_padding"] = _padding(batch, keys, size.memory, hostile)
    if "ranks" in has:
        rows = [torch.randperm(length, generator=generator) for _ in range(batch)]
        order = torch.stack(rows)
        past = torch.full((batch, size.memory), -1)
        if hostile and batch > 1:
            past[-1] = length  # a memory that nobody sees: the first of the order sees no key
        parts |= {"rank_q": order, "rank_k": torch.cat([past, order], 1)}
    if "bits" in has:
        hidden = torch.rand((batch, length, keys), generator=generator) < 0.5
        hidden[:, length // 2] = True
        parts["bits"] = pack_bits(hidden)
    if "causal" in has:
        parts |= {"causal": True, "same_length": size.same_length}
    if "window" in has:
        parts |= {"window": size.window, "chunk": size.chunk}
    return AttentionMask(**parts)


def _padding(batch: int, keys: int, memory: int, hostile: bool) -> Tensor:
    padding = torch.zeros(batch, keys, dtype=torch.bool)
    if not hostile:
        padding[:, memory : memory + (keys - memory) // 10] = True
        return padding
    padding[0, keys - keys // 3 :] = True
    if batch > 1:
        padding[1, : keys // 2] = True
    if batch > 2:
        padding[-1] = True
    return padding


def _segments(size: Size, keys: int, generator: torch.Generator) -> Tensor:
    segments = torch.randint(0, 3, (size.batch, keys), generator=generator)
    segments[:, : size.memory] = 0
    return segments


def _one_stream(
    mask: AttentionMask, segments: Tensor | None, positions: Tensor | None, memory: int
) -> dict[str, Any]:
    """Options of ``rel_attention``, whose rows bring ranks, bits and segments of their own."""
    segments_q = None if segments is None else segments[:, memory:]
    if positions is not None:

        def at_rows(x: Tensor | None) -> Tensor | None:
            """Row by row, not by the code under test."""
            if x is None:
                return None
            pairs = zip(x, positions.clamp(min=0), strict=True)
            return torch.stack([of_element[rows] for of_element, rows in pairs])

        mask = replace(mask, rank_q=at_rows(mask.rank_q), bits=at_rows(mask.bits))
        segments_q = at_rows(segments_q)
    named = {"segments_q": segments_q, "segments_k": segments}
    return {"mask": mask, "memory_length": memory, **named}


def _laid_out(
    tensors: dict[str, Tensor],
    size: Size,
    has: frozenset[str],
    device: torch.device,
    hostile: bool,
) -> dict[str, Tensor]:
    """The operands as they lie in memory, those of the memory apart where the class says so."""
    placed = {}
    far = Far(tensors["k"].dtype, device) if size.far else None
    for name, x in tensors.items():
        if far is not None and x.dim() == 4 and x.shape[0] == 2:
            placed[name] = far.place(x.to(device))
        elif x.dim() != 4:
            placed[name] = x.to(device)
        elif hostile:
            placed[name] = within_nan(x.to(device), size.strided)
        else:  # a model's projections are (length, batch, heads, dim) in memory
            placed[name] = x.transpose(0, 1).contiguous().to(device).transpose(0, 1)
    if size.one_table and "start" in has:
        placed["r"] = placed["r"][:, :, :1].expand_as(placed["r"])
    if "memory" not in has:
        return placed
    for name in ("k", "v"):
        whole = placed[name]
        placed[name], placed[f"{name}_memory"] = whole[:, size.memory :], whole[:, : size.memory]
    return placed


def _on(options: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The same options on a device."""
    there = {}
    for name, value in options.items():
        if isinstance(value, AttentionMask):
            parts = {part.name: getattr(value, part.name) for part in fields(value)}
            value = AttentionMask(**{part: moved(x, device) for part, x in parts.items()})
        there[name] = moved(value, device)
    return there


def _tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)
