"""Relative attention by the C++ kernels: from tensors to addresses and strides.

Letters: B batch, N heads, I query rows, J keys, M memory keys, D head dim, G groups of r, P rows of
r. The kernels are described in ``csrc/cpu/rel_attention.h``; they take fp32, bf16 and fp16, compute
in fp32 (bf16 products of pairs where the CPU has them), and give the same bits on any number of
threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xlnet_fast import _extension
from xlnet_fast.errors import ArgumentError, ShapeError
from xlnet_fast.kernels.cpu.addresses import DTYPES, Addresses
from xlnet_fast.kernels.cpu.instruction_sets import instruction_set
from xlnet_fast.operands import Keys, Queries
from xlnet_fast.philox import keep_threshold


def rel_attention_forward(
    keys: Keys, streams: Sequence[Queries], outs: Sequence[Tensor], stats: Sequence[Tensor]
) -> None:
    """Fill ``outs``, one (B, I, N, D) a stream; shapes as in :mod:`xlnet_fast.operands`.

    ``stats`` are empty: the backward pass computes the scores again.
    """
    if keys.count == 0:
        for out in outs:
            out.zero_()
        return
    _check(keys, streams)
    for queries, out in zip(streams, outs, strict=True):
        _check_shape("out", out, tuple(queries.q.shape))
    PreparedCall(keys, streams).forward(*operands_of(keys, streams), outs)


def rel_attention_backward(
    keys: Keys,
    streams: Sequence[Queries],
    outs: Sequence[Tensor],
    stats: Sequence[Tensor],
    grad_outs: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    deterministic: bool,
) -> None:
    """Fill ``grads`` by recomputation (formulas: docs/maths.md), always deterministic.

    ``grads`` are shaped like q of each stream, k, v, k_memory, v_memory, r, r_w_bias, r_r_bias,
    r_s_bias and seg_embed; None where there is no such operand or nobody asks for its gradient.
    ``outs``, ``stats`` and ``deterministic`` are not needed here: the order of all sums is fixed.
    """
    if keys.count == 0:
        for grad in grads:
            if grad is not None:
                grad.zero_()
        return
    _check(keys, streams)
    qs, shared, seeds = operands_of(keys, streams)
    for q, grad_out in zip(qs, grad_outs, strict=True):
        _check_shape("grad_out", grad_out, tuple(q.shape))
    for like, grad in zip((*qs, *shared), grads, strict=True):
        _check_shape("a gradient", grad, None if like is None else tuple(like.shape))
    PreparedCall(keys, streams).backward(qs, shared, seeds, grad_outs, grads)


_OPERANDS = (
    "k", "v", "k_memory", "v_memory", "r", "r_w_bias", "r_r_bias", "r_s_bias", "seg_embed",
)  # fmt: skip


def operands_of(
    keys: Keys, streams: Sequence[Queries]
) -> tuple[list[Tensor], tuple[Tensor | None, ...], list[Tensor | None]]:
    """What has another value in each layer: q of each stream, what they share, and the seeds."""
    shared = (
        keys.k, keys.v, keys.k_memory, keys.v_memory, keys.r,
        keys.r_w_bias, keys.r_r_bias, keys.r_s_bias, keys.seg_embed,
    )  # fmt: skip
    return [queries.q for queries in streams], shared, [queries.seed for queries in streams]


class PreparedCall(Addresses):
    """What the compiled entries are told of sizes, masks and integers, which nothing checks here.

    The layers of a model differ in the values of their operands alone, so that one object serves
    all of a forward pass: operands, as ``operands_of`` has them, of the same shapes and dtypes.
    """

    def __init__(self, keys: Keys, streams: Sequence[Queries]) -> None:
        super().__init__()
        q, mask = streams[0].q, streams[0].mask
        batch, _, heads, dim = q.shape
        self._keys: dict[str, Any] = {
            "dtype": DTYPES[q.dtype],
            "batch": batch, "heads": heads, "head_dim": dim,
            "keys": keys.count, "memory": keys.memory_length,
            "groups": keys.r.shape[0], "table": keys.r.shape[1], "table_start": keys.r_start,
            "apart": 0 if keys.k_memory is None else keys.k_memory.shape[1],
            "segments": self.integers("segments", keys.segments),
            "key_padding": self.flat(mask.key_padding),
            "rank_k": self.integers("rank_k", mask.rank_k),
            "scale": keys.scale,
            "dropout": keys.dropout_p > 0.0,
            "keep_scale": 1.0 / (1.0 - keys.dropout_p),
            "keep_from": keep_threshold(keys.dropout_p),
        }  # fmt: skip
        self._streams = [self._stream(keys, queries) for queries in streams]

    def _stream(self, keys: Keys, queries: Queries) -> dict[str, Any]:
        mask, segmented = queries.mask, keys.seg_embed is not None and keys.segments is not None
        bits = mask.bits
        by_position = queries.by_position and queries.positions is not None
        left, right, chunk = mask.limits
        return {
            "rows": queries.q.shape[1],
            "table": keys.current if by_position else queries.q.shape[1],
            "positions": self.integers("positions", queries.positions),
            "segments": self.integers("segments", queries.segments) if segmented else None,
            "rank_q": self.integers("rank_q", mask.rank_q),
            "bits": self.flat(bits),
            "bits_batch_stride": 0 if bits is None or bits.shape[0] == 1 else bits[0].numel(),
            "by_position": by_position,
            "causal": mask.causal, "same_length": mask.same_length, "see_self": mask.see_self,
            "window_left": left, "window_right": right, "chunk": chunk,
        }  # fmt: skip

    def arguments(
        self,
        queries: Sequence[Tensor],
        shared: Sequence[Tensor | None],
        seeds: Sequence[Tensor | None],
        alive: Addresses,
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Keys and streams of one layer; ``alive`` keeps what their addresses point at."""
        keys = dict(self._keys)
        for name, x in zip(_OPERANDS, shared, strict=True):
            keys[name] = alive.view(x)
        streams = [
            {**stream, "q": alive.view(q), "seed": 0 if seed is None else int(seed) % 2**64}
            for stream, q, seed in zip(self._streams, queries, seeds, strict=True)
        ]
        return keys, streams

    def forward(
        self,
        queries: Sequence[Tensor],
        shared: Sequence[Tensor | None],
        seeds: Sequence[Tensor | None],
        outs: Sequence[Tensor],
    ) -> None:
        """Fill ``outs`` for one layer."""
        alive = Addresses()
        keys, streams = self.arguments(queries, shared, seeds, alive)
        for stream, out in zip(streams, outs, strict=True):
            stream["out"] = alive.output(out)
        _extension.require().rel_attention_forward(
            keys, streams, torch.get_num_threads(), instruction_set()
        )
        alive.write_back()

    def backward(
        self,
        queries: Sequence[Tensor],
        shared: Sequence[Tensor | None],
        seeds: Sequence[Tensor | None],
        grad_outs: Sequence[Tensor],
        grads: Sequence[Tensor | None],
    ) -> None:
        """Fill ``grads``, of queries and then of what they share, for one layer."""
        alive = Addresses()
        keys, streams = self.arguments(queries, shared, seeds, alive)
        for stream, grad_out, grad_q in zip(streams, grad_outs, grads, strict=False):
            stream["d_out"] = alive.view(grad_out)
            stream["d_q"] = alive.output(grad_q)
        vectors = grads[-4:]
        gradients: dict[str, Any] = {
            name: alive.output(grad)
            for name, grad in zip(_OPERANDS[:5], grads[len(queries) : -4], strict=True)
        }
        shape = shared[5].shape  # type: ignore[union-attr]
        sums = [None if x is None else torch.empty(shape, dtype=torch.float32) for x in vectors]
        for name, total in zip(_OPERANDS[5:], sums, strict=True):
            gradients[name] = None if total is None else total.data_ptr()
        _extension.require().rel_attention_backward(
            keys, streams, gradients, torch.get_num_threads(), instruction_set()
        )
        alive.write_back()
        for grad, total in zip(vectors[:3], sums[:3], strict=True):
            if grad is not None and total is not None:
                grad.copy_(total)
        if vectors[3] is not None and sums[3] is not None:
            vectors[3].copy_(torch.stack([-sums[3], sums[3]]))


def _check(keys: Keys, streams: Sequence[Queries]) -> None:
    """What a caller past the public ops could get wrong and memory would not survive."""
    q = streams[0].q
    if q.dtype not in DTYPES:
        raise ArgumentError(f"backend cpu takes float32, bfloat16 and float16, not {q.dtype}")
    batch, _, heads, dim = q.shape
    rows = (batch, None, heads, dim)
    v_memory = None if keys.k_memory is None else (batch, keys.k_memory.shape[1], heads, dim)
    for name, x, shape in (
        *(("q", stream.q, rows) for stream in streams),
        ("k", keys.k, rows), ("v", keys.v, (batch, keys.k.shape[1], heads, dim)),
        ("k_memory", keys.k_memory, rows), ("v_memory", keys.v_memory, v_memory),
        ("r", keys.r, (None, None, heads, dim)),
        ("r_w_bias", keys.r_w_bias, (heads, dim)), ("r_r_bias", keys.r_r_bias, (heads, dim)),
        ("r_s_bias", keys.r_s_bias, (heads, dim)), ("seg_embed", keys.seg_embed, (2, heads, dim)),
    ):  # fmt: skip
        _check_shape(name, x, shape)
        if x is not None and (x.device.type != "cpu" or x.dtype != q.dtype):
            raise ArgumentError(f"{name} is {x.dtype} on {x.device}, expected {q.dtype} on the CPU")
    if (keys.k_memory is None) != (keys.v_memory is None):
        raise ArgumentError("k_memory and v_memory must be given together")
    apart = 0 if keys.k_memory is None else keys.k_memory.shape[1]
    if not apart <= keys.memory_length <= keys.count:
        raise ShapeError(
            f"memory_length is {keys.memory_length}, expected {apart} to {keys.count} "
            f"(the keys of k_memory, all keys)"
        )
    if batch % keys.r.shape[0] != 0:
        raise ShapeError(f"the groups of r, {keys.r.shape[0]}, must divide the batch, {batch}")
    _check_shape("segments of the keys", keys.segments, (batch, keys.count))
    for stream in streams:
        _check_stream(keys, stream)


def _check_stream(keys: Keys, stream: Queries) -> None:
    batch, rows = stream.q.shape[:2]
    table = keys.current if stream.by_position and stream.positions is not None else rows
    _check_shape("positions", stream.positions, (batch, rows))
    _check_shape("segments of the queries", stream.segments, (batch, table))
    stream.mask.validate(batch, table, keys.count)
    if keys.dropout_p > 0.0 and stream.seed is None:
        raise ArgumentError("dropout needs the seed of every stream")


def _check_shape(name: str, x: Tensor | None, shape: tuple[int | None, ...] | None) -> None:
    if x is None or shape is None:
        return
    fits = x.dim() == len(shape) and all(
        want in (None, have) for want, have in zip(shape, x.shape, strict=True)
    )
    if not fits:
        raise ShapeError(f"{name} has shape {tuple(x.shape)}, expected {shape} (None: any)")
