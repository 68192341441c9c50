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
from xlnet_fast.kernels.cpu.instruction_sets import instruction_set
from xlnet_fast.operands import Keys, Queries
from xlnet_fast.philox import keep_threshold

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # enum Dtype of csrc/params.h


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
    call = _Call(keys, streams)
    for stream, out in zip(call.streams, outs, strict=True):
        stream["out"] = call.output(out)
    _extension.require().rel_attention_forward(
        call.keys, call.streams, torch.get_num_threads(), instruction_set()
    )
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
    call = _Call(keys, streams)
    for stream, grad_out, grad_q in zip(call.streams, grad_outs, grads, strict=False):
        stream["d_out"] = call.view(grad_out)
        stream["d_q"] = None if grad_q is None else call.output(grad_q)
    *tensors, r_w_bias, r_r_bias, r_s_bias, seg_embed = grads[len(streams) :]
    names = ("k", "v", "k_memory", "v_memory", "r")
    gradients: dict[str, Any] = {
        name: None if grad is None else call.output(grad)
        for name, grad in zip(names, tensors, strict=True)
    }
    vectors = (r_w_bias, r_r_bias, r_s_bias, seg_embed)
    shape = keys.r_w_bias.shape
    sums = [None if grad is None else torch.empty(shape, dtype=torch.float32) for grad in vectors]
    for name, total in zip(("r_w_bias", "r_r_bias", "r_s_bias", "seg_embed"), sums, strict=True):
        gradients[name] = None if total is None else total.data_ptr()
    _extension.require().rel_attention_backward(
        call.keys, call.streams, gradients, torch.get_num_threads(), instruction_set()
    )
    call.write_back()
    for grad, total in zip(vectors[:3], sums[:3], strict=True):
        if grad is not None and total is not None:
            grad.copy_(total)
    if seg_embed is not None and sums[3] is not None:
        seg_embed.copy_(torch.stack([-sums[3], sums[3]]))


class _Call:
    """The arguments of the compiled entries, and the tensors whose memory they point to."""

    def __init__(self, keys: Keys, streams: Sequence[Queries]) -> None:
        self._alive: list[Tensor] = []
        self._copies: list[tuple[Tensor, Tensor]] = []
        q, mask = streams[0].q, streams[0].mask
        _check(keys, streams)
        batch, _, heads, dim = q.shape
        self.keys: dict[str, Any] = {
            "dtype": DTYPES[q.dtype],
            "batch": batch, "heads": heads, "head_dim": dim,
            "keys": keys.count, "memory": keys.memory_length,
            "groups": keys.r.shape[0], "table": keys.r.shape[1],
            "apart": 0 if keys.k_memory is None else keys.k_memory.shape[1],
            "k": self.view(keys.k), "v": self.view(keys.v),
            "k_memory": self.view(keys.k_memory), "v_memory": self.view(keys.v_memory),
            "r": self.view(keys.r),
            "r_w_bias": self.view(keys.r_w_bias), "r_r_bias": self.view(keys.r_r_bias),
            "r_s_bias": self.view(keys.r_s_bias), "seg_embed": self.view(keys.seg_embed),
            "segments": self.integers(keys.segments),
            "key_padding": self.flat(mask.key_padding),
            "rank_k": self.integers(mask.rank_k),
            "scale": keys.scale,
            "dropout": keys.dropout_p > 0.0,
            "keep_scale": 1.0 / (1.0 - keys.dropout_p),
            "keep_from": keep_threshold(keys.dropout_p),
        }  # fmt: skip
        self.streams = [self._stream(keys, queries) for queries in streams]

    def _stream(self, keys: Keys, queries: Queries) -> dict[str, Any]:
        mask, segmented = queries.mask, keys.seg_embed is not None and keys.segments is not None
        bits = mask.bits
        return {
            "rows": queries.q.shape[1],
            "table": keys.current if queries.by_position else queries.q.shape[1],
            "q": self.view(queries.q),
            "positions": self.integers(queries.positions),
            "segments": self.integers(queries.segments) if segmented else None,
            "rank_q": self.integers(mask.rank_q),
            "bits": self.flat(bits),
            "bits_batch_stride": 0 if bits is None or bits.shape[0] == 1 else bits[0].numel(),
            "seed": 0 if queries.seed is None else int(queries.seed) % 2**64,
            "by_position": queries.by_position and queries.positions is not None,
            "causal": mask.causal, "same_length": mask.same_length, "see_self": mask.see_self,
        }  # fmt: skip

    def view(self, x: Tensor | None) -> tuple[int, ...] | None:
        """Address and strides of a tensor whose last dimension is contiguous, or of a copy."""
        if x is None or x.numel() == 0:
            return None
        if x.stride(-1) != 1 and x.shape[-1] > 1:
            x = x.contiguous()
        self._alive.append(x)
        return (x.data_ptr(), *x.stride()[:-1])

    def output(self, x: Tensor) -> tuple[int, ...] | None:
        """As ``view``, of a tensor to be filled; ``write_back`` brings a copy's values home."""
        if x.stride(-1) != 1 and x.shape[-1] > 1:
            home, x = x, torch.empty_like(x, memory_format=torch.contiguous_format)
            self._copies.append((home, x))
        return self.view(x)

    def write_back(self) -> None:
        for home, copy in self._copies:
            home.copy_(copy)

    def integers(self, x: Tensor | None) -> int | None:
        """Address of a contiguous int32 copy. Ranks and positions are far below 2**31."""
        return None if x is None else self.flat(x.to(torch.int32))

    def flat(self, x: Tensor | None) -> int | None:
        """Address of a contiguous tensor."""
        if x is None:
            return None
        x = x.contiguous()
        self._alive.append(x)
        return x.data_ptr()


def _check(keys: Keys, streams: Sequence[Queries]) -> None:
    """What a caller past the public ops could get wrong and memory would not survive."""
    q = streams[0].q
    batch, _, heads, dim = q.shape
    if q.dtype not in DTYPES:
        raise ArgumentError(f"backend cpu takes float32, bfloat16 and float16, not {q.dtype}")
    expected = {
        "k": (batch, None, heads, dim), "v": (batch, None, heads, dim),
        "k_memory": (batch, None, heads, dim), "v_memory": (batch, None, heads, dim),
        "r": (None, None, heads, dim), "r_w_bias": (heads, dim), "r_r_bias": (heads, dim),
        "r_s_bias": (heads, dim), "seg_embed": (2, heads, dim),
    }  # fmt: skip
    operands = [(name, getattr(keys, name), shape) for name, shape in expected.items()]
    operands += [("q", stream.q, (batch, None, heads, dim)) for stream in streams]
    for name, x, shape in operands:
        if x is None:
            continue
        if x.device.type != "cpu" or x.dtype != q.dtype:
            raise ArgumentError(f"{name} is {x.dtype} on {x.device}, expected {q.dtype} on the CPU")
        fits = len(x.shape) == len(shape) and all(
            want in (None, have) for want, have in zip(shape, x.shape, strict=True)
        )
        if not fits:
            raise ShapeError(f"{name} has shape {tuple(x.shape)}, expected {shape} (None: any)")
    if batch % keys.r.shape[0] != 0:
        raise ShapeError(f"the groups of r, {keys.r.shape[0]}, must divide the batch, {batch}")
    for stream in streams:
        stream.mask.validate(batch, _table_rows(keys, stream), keys.count)


def _table_rows(keys: Keys, stream: Queries) -> int:
    """Rows of a stream's segments, ranks and bits."""
    return keys.current if stream.by_position else stream.q.shape[1]
