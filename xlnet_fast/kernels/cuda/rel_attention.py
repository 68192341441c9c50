"""Relative attention by the CUDA C++ kernels: from tensors to addresses and strides.

Letters: B batch, N heads, I query rows, J keys, M memory keys, D head dim, G groups of r, P rows of
r. The kernels are in ``csrc/cuda/rel_attention_*.cuh``; they take fp16 and bf16, D a multiple of 8
up to 128, accumulate in fp32, and give the same bits every time: no sum is in an order that may
change.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError, BackendUnavailable, ShapeError
from xlnet_fast.kernels.cuda import entries, why_unavailable
from xlnet_fast.kernels.cuda.memory import (
    ALIGNMENT,
    DTYPES,
    Memory,
    aligned,
    why_unreadable,
    window,
)
from xlnet_fast.operands import Keys, Queries, check_like
from xlnet_fast.philox import keep_threshold

HALF = (torch.float16, torch.bfloat16)
MAX_HEAD_DIM = 128
HEAD_DIM_STEP = 8  # elements of 16 bytes
MAX_BLOCKS = 2**31 - 1
ROWS = 64
"""Query rows of a tile: ``kRows`` in ``csrc/cuda/shapes.cuh``."""
BLOCKS_WANTED = 512
"""The kernel of dr splits the batch until it has about so many blocks: a few for each processor."""


def rel_attention_forward(
    keys: Keys, streams: Sequence[Queries], outs: Sequence[Tensor], stats: Sequence[Tensor]
) -> None:
    """Fill `outs` with relative attention.

    Args:
        keys, streams: operands whose rows begin at multiples of 16 bytes.
        outs: (B, I, N, D) per stream, written in full; absent rows are exactly zero.
        stats: fp32 (B, N, I) contiguous per stream: log2 of the softmax's denominator, scores in
            units of log2; +inf for rows that see no key and for absent ones.

    Raises:
        BackendUnavailable: the kernels or a device for them are missing.
        ArgumentError, ShapeError: what the kernels do not take.
    """
    call = _Call(keys, streams)
    _check_rows(streams, outs, stats)
    for number, (out, stat) in enumerate(zip(outs, stats, strict=True)):
        call.streams[number] |= {"out": call.target(out), "stats": call.flat(stat, writable=True)}
    entries.call("rel_attention_forward", call, call.device, call.keys, call.streams)
    call.write_back()


def rel_attention_backward(
    keys: Keys,
    streams: Sequence[Queries],
    outs: Sequence[Tensor],
    stats: Sequence[Tensor],
    grad_outs: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    deterministic: bool,
) -> None:
    """Fill `grads` by recomputation (formulas: docs/maths.md), always deterministic.

    Args:
        keys, streams, outs, stats: of the forward call.
        grad_outs: (B, I, N, D) per stream, any strides.
        grads: of each stream's q, then of k, v, k_memory, v_memory, r, r_w_bias, r_r_bias,
            r_s_bias and seg_embed; None where there is no such operand or no interest.
        deterministic: not needed here, the order of all sums is fixed.

    Raises:
        As :func:`rel_attention_forward`.
    """
    call = _Call(keys, streams)
    _check_rows(streams, outs, stats)
    _check_rows(streams, grad_outs, stats)
    batch, _, heads, dim = streams[0].q.shape
    d_queries, of_keys = grads[: len(streams)], list(grads[len(streams) :])
    fp32 = partial(torch.empty, dtype=torch.float32, device=call.device)
    d_c = [None if call.keys["segments"] is None else torch.empty_like(x) for x in stats]
    for number, stream in enumerate(call.streams):
        made = {name: torch.empty_like(stats[number]) for name in ("delta", "norm")}
        if (of_rows := d_c[number]) is not None:
            made |= {"c": torch.empty_like(of_rows), "d_c": of_rows}
        stream |= {name: call.flat(x, writable=True) for name, x in made.items()}
        stream["stats"] = call.flat(stats[number])
        stream["out"] = call.view(aligned(outs[number]))
        stream["d_out"] = call.view(aligned(grad_outs[number]))
        stream["d_q"] = call.target(d_queries[number])
    names = ("k", "v", "k_memory", "v_memory")
    gradients: dict[str, Any] = {
        name: call.target(grad) for name, grad in zip(names, of_keys[:4], strict=True)
    }
    d_r, d_w_bias, d_r_bias, d_s_bias, d_embed = of_keys[4:]
    w_parts = r_parts = b_parts = None
    if d_w_bias is not None or any(grad is not None for grad in of_keys[:4]):
        w_parts = fp32((-(-keys.count // block_columns(dim)), batch, heads, dim))
        gradients["r_w_bias_parts"] = call.flat(w_parts, writable=True)
    if d_r is not None or d_r_bias is not None:
        groups, table = keys.r.shape[:2]
        tiles = tiles_of_table(table + keys.r_start, keys.current, dim)
        splits = max(1, min(batch // groups, BLOCKS_WANTED // (tiles * groups * heads)))
        r_parts = fp32((splits, groups, heads, table, dim))
        b_parts = fp32((splits, tiles, groups, heads, dim))
        gradients["splits"] = splits
        gradients["r_parts"] = call.flat(r_parts, writable=True)
        gradients["r_r_bias_parts"] = call.flat(b_parts, writable=True)
    entries.call("rel_attention_backward", call, call.device, call.keys, call.streams, gradients)
    call.write_back()
    if d_w_bias is not None and w_parts is not None:
        d_w_bias.copy_(w_parts.sum((0, 1)))
    if d_r is not None and r_parts is not None:
        d_r.copy_(r_parts.sum(0).transpose(1, 2))
    if d_r_bias is not None and b_parts is not None:
        d_r_bias.copy_(b_parts.sum((0, 1, 2)))
    _segment_gradients(keys, streams, d_c, d_s_bias, d_embed)


def block_columns(dim: int) -> int:
    """Keys, or rows of r, in a block of the backward pass: ``kBlockColumns`` in ``csrc/cuda``."""
    return 64 if dim <= 64 else 32


def tiles_of_table(table: int, current: int, dim: int) -> int:
    """Blocks' worth of rows of r; these begin at multiples of their size from row L on.

    `table` counts from the first that the positions have, whether r has it or not.
    """
    before = -current % block_columns(dim)  # rows that the first tile has below row 0
    return -(-(table + before) // block_columns(dim))


def _segment_gradients(
    keys: Keys,
    streams: Sequence[Queries],
    d_c: Sequence[Tensor | None],
    d_s_bias: Tensor | None,
    d_embed: Tensor | None,
) -> None:
    """From the gradients of c_i = (q_i + r_s_bias) . (seg_embed_1 - seg_embed_0)."""
    if keys.r_s_bias is None or keys.seg_embed is None or (d_s_bias is None and d_embed is None):
        return
    total = torch.zeros_like(keys.r_s_bias[:, :1], dtype=torch.float32)
    weighted = torch.zeros_like(keys.r_s_bias, dtype=torch.float32)
    for queries, of_rows in zip(streams, d_c, strict=True):
        if of_rows is not None:
            total += of_rows.sum((0, 2))[:, None]
            # An absent row's q may hold anything, and 0 * NaN is NaN.
            q = queries.q.float().masked_fill((of_rows == 0).transpose(1, 2)[..., None], 0.0)
            # No product of matrices: cuBLAS's raise where only deterministic algorithms may run.
            weighted += q.mul_(of_rows.transpose(1, 2)[..., None]).sum((0, 1))
    if d_s_bias is not None:
        d_s_bias.copy_(total * (keys.seg_embed[1].float() - keys.seg_embed[0].float()))
    if d_embed is not None:
        difference = weighted + total * keys.r_s_bias.float()
        d_embed[1].copy_(difference)
        d_embed[0].copy_(-difference)


class _Call(Memory):
    """The arguments of the compiled entries."""

    def __init__(self, keys: Keys, streams: Sequence[Queries]) -> None:
        super().__init__()
        q, mask = streams[0].q, streams[0].mask
        _check(keys, streams)
        self.device = q.device
        batch, _, heads, dim = q.shape
        apart = 0 if keys.k_memory is None else keys.k_memory.shape[1]
        biases = (keys.r_w_bias, keys.r_r_bias, keys.r_s_bias, keys.seg_embed)
        vectors = [None if x is None else aligned(x) for x in biases]
        names = ("k", "v", "k_memory", "v_memory", "r")
        tables = {
            name: None if (x := getattr(keys, name)) is None else self.view(aligned(x))
            for name in names
        }
        segmented = keys.seg_embed is not None and keys.segments is not None
        self.keys: dict[str, Any] = {
            "dtype": DTYPES[q.dtype],
            "batch": batch, "heads": heads, "head_dim": dim,
            "keys": keys.count, "memory": keys.memory_length,
            "groups": keys.r.shape[0], "table": keys.r.shape[1], "table_start": keys.r_start,
            "apart": apart,
            **tables,
            "r_w_bias": self.view(vectors[0]), "r_r_bias": self.view(vectors[1]),
            "r_s_bias": self.view(vectors[2]) if segmented else None,
            "seg_embed": self.view(vectors[3]) if segmented else None,
            "segments": self.integers(keys.segments) if segmented else None,
            "key_padding": self.flat(mask.key_padding),
            "rank_k": self.integers(mask.rank_k),
            "scale": keys.scale,
            "dropout": keys.dropout_p > 0.0,
            "keep_scale": 1.0 / (1.0 - keys.dropout_p),
            "keep_from": keep_threshold(keys.dropout_p),
        }  # fmt: skip
        self.streams = [self._stream(keys, queries, segmented) for queries in streams]
        self._copies: list[tuple[Tensor, Tensor]] = []

    def target(self, x: Tensor | None) -> tuple[int, ...] | None:
        """As :meth:`output`, of a tensor of any layout; :meth:`write_back` fills such a one."""
        if x is None or x.numel() == 0:
            return None
        if why_unreadable(x) is not None or x.data_ptr() % ALIGNMENT != 0:
            home, x = x, torch.empty_like(x, memory_format=torch.contiguous_format)
            self._copies.append((home, x))
        return self.output(x)

    def write_back(self) -> None:
        """Bring the values of copied outputs home."""
        for home, copy in self._copies:
            home.copy_(copy)

    def _stream(self, keys: Keys, queries: Queries, segmented: bool) -> dict[str, Any]:
        mask, bits = queries.mask, queries.mask.bits
        by_position = queries.by_position and queries.positions is not None
        return {
            "rows": queries.q.shape[1],
            "table": keys.current if by_position else queries.q.shape[1],
            "q": self.view(aligned(queries.q)),
            "positions": self.integers(queries.positions),
            "segments": self.integers(queries.segments) if segmented else None,
            "rank_q": self.integers(mask.rank_q),
            "bits": self.flat(bits),
            "bits_batch_stride": 0 if bits is None or bits.shape[0] == 1 else bits[0].numel(),
            "seed_at": self.flat(queries.seed) if keys.dropout_p > 0.0 else None,
            "by_position": by_position,
            "causal": mask.causal, "same_length": mask.same_length,
            "see_self": mask.see_self and not mask.hides_nothing,
            **window(mask, keys.count, keys.current),
        }  # fmt: skip


def _check(keys: Keys, streams: Sequence[Queries]) -> None:
    """What the ops' own checks leave open: limits of these kernels."""
    q = streams[0].q
    reason = why_unavailable(q.device)
    if reason is not None:
        raise BackendUnavailable(reason)
    if q.dtype not in HALF:
        raise ArgumentError(f"backend cuda takes float16 and bfloat16, not {q.dtype}")
    dim = q.shape[3]
    if dim % HEAD_DIM_STEP != 0 or not 0 < dim <= MAX_HEAD_DIM:
        raise ShapeError(
            f"backend cuda takes head dims that are multiples of {HEAD_DIM_STEP} up to "
            f"{MAX_HEAD_DIM}, not {dim}"
        )
    tensors = {f"q of stream {number}": stream.q for number, stream in enumerate(streams)}
    tables = ("k", "v", "k_memory", "v_memory", "r")
    biases = ("r_w_bias", "r_r_bias", "r_s_bias", "seg_embed")
    tensors |= {name: getattr(keys, name) for name in (*tables, *biases)}
    for name, x in tensors.items():
        if x is None or x.numel() == 0:
            continue
        if x.dtype != q.dtype or x.device != q.device:
            raise ArgumentError(
                f"{name} is {x.dtype} on {x.device}, expected {q.dtype} on {q.device}"
            )
        reason = None if name in biases else why_unreadable(x)
        if reason is not None:
            raise ArgumentError(f"backend cuda cannot read {name}: {reason}")
    _check_devices(keys, streams)
    if keys.count == 0 or any(stream.q.numel() == 0 for stream in streams):
        raise ShapeError("backend cuda needs at least one batch element, head, query row and key")
    if keys.dropout_p > 0.0 and any(stream.seed is None for stream in streams):
        raise ArgumentError(f"dropout_p {keys.dropout_p} needs the seed of every stream")
    longest = max(keys.count, keys.r.shape[1], *(stream.q.shape[1] for stream in streams))
    tiles = sum(-(-stream.q.shape[1] // ROWS) for stream in streams) + longest // 32 + 2
    blocks = q.shape[0] * q.shape[2] * tiles
    if blocks > MAX_BLOCKS:
        raise ShapeError(f"the call needs {blocks} thread blocks, and a grid has {MAX_BLOCKS}")


def _check_rows(
    streams: Sequence[Queries], outs: Sequence[Tensor], stats: Sequence[Tensor]
) -> None:
    """Outputs, or their gradients, are like q, and statistics are fp32 (B, N, I), contiguous."""
    for number, (stream, out, stat) in enumerate(zip(streams, outs, stats, strict=True)):
        check_like(f"the output of stream {number}, or its gradient,", out, stream.q)
        batch, rows, heads, _ = stream.q.shape
        if tuple(stat.shape) != (batch, heads, rows) or not stat.is_contiguous():
            raise ShapeError(
                f"stats of stream {number} has shape {tuple(stat.shape)}, expected "
                f"{(batch, heads, rows)}, contiguous"
            )
        if stat.dtype != torch.float32 or stat.device != out.device:
            raise ArgumentError(
                f"stats of stream {number} is {stat.dtype} on {stat.device}, expected "
                f"torch.float32 on {out.device}"
            )


def _check_devices(keys: Keys, streams: Sequence[Queries]) -> None:
    """All that is not of the operands' dtype lies on their device too."""
    device = streams[0].q.device
    others: dict[str, Tensor | None] = {"segments of the keys": keys.segments}
    for number, stream in enumerate(streams):
        parts = zip(("key_padding", "rank_q", "rank_k", "bits"), stream.mask.tensors, strict=True)
        others |= {f"mask.{name} of stream {number}": part for name, part in parts}
        others |= {
            f"{name} of stream {number}": getattr(stream, name)
            for name in ("segments", "positions", "seed")
        }
    for name, x in others.items():
        if x is not None and x.device != device:
            raise ArgumentError(f"{name} is on {x.device}, expected {device} as q")
