"""torch.library contracts of rel_attention and two_stream_attention.

Beside its outputs an op returns statistics of their rows, which its backward op takes: fp32
(B, N, I), or of shape (0,) from a backend that needs none. They have no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from xlnet_fast.errors import BackendUnavailable
from xlnet_fast.kernels.cpu import rel_attention as cpu_attention
from xlnet_fast.kernels.cuda import rel_attention as cuda_attention
from xlnet_fast.kernels.sdpa import rel_attention as sdpa_attention
from xlnet_fast.masks import AttentionMask
from xlnet_fast.operands import Keys, Queries
from xlnet_fast.ops._contracts._registry import (
    LIBRARY,
    PARTS,
    empty_grads,
    launch,
    names,
    register,
)
from xlnet_fast.ops._validation import check_positions

_ATTENTION = (
    "Tensor k, Tensor v, Tensor? k_memory, Tensor? v_memory, Tensor r, Tensor r_w_bias, "
    "Tensor r_r_bias, Tensor? r_s_bias, Tensor? seg_embed, Tensor? segments_q, "
    f"Tensor? segments_k, {PARTS}, str backend"
)
_NINE = ", ".join(["Tensor"] * 9)

LIBRARY.define(f"rel_attention(Tensor q, {_ATTENTION}) -> (Tensor, Tensor)")
LIBRARY.define(
    "rel_attention_backward(bool[] wanted, Tensor grad_out, Tensor out, Tensor stats, Tensor q, "
    f"{_ATTENTION}) -> (Tensor, {_NINE})"
)
LIBRARY.define(
    f"two_stream_attention(Tensor q_h, Tensor q_g, {_ATTENTION}) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "two_stream_attention_backward(bool[] wanted, Tensor grad_h, Tensor grad_g, Tensor out_h, "
    "Tensor out_g, Tensor stats_h, Tensor stats_g, Tensor q_h, Tensor q_g, "
    f"{_ATTENTION}) -> (Tensor, Tensor, {_NINE})"
)


@dataclass(frozen=True)
class _Call:
    """Schema arguments of an attention op after its queries, in schema order."""

    k: Tensor
    v: Tensor
    k_memory: Tensor | None
    v_memory: Tensor | None
    r: Tensor
    r_w_bias: Tensor
    r_r_bias: Tensor
    r_s_bias: Tensor | None
    seg_embed: Tensor | None
    segments_q: Tensor | None
    segments_k: Tensor | None
    key_padding: Tensor | None
    rank_q: Tensor | None
    rank_k: Tensor | None
    bits: Tensor | None
    positions: Tensor | None
    seed: Tensor | None
    causal: bool
    same_length: bool
    see_self: bool
    memory_length: int
    scale: float
    dropout_p: float
    backend: str

    @property
    def keys(self) -> Keys:
        """What the query rows of all streams share."""
        return Keys(
            self.k, self.v, self.k_memory, self.v_memory, self.r, self.r_w_bias, self.r_r_bias,
            self.r_s_bias, self.seg_embed, self.segments_k, self.memory_length, self.scale,
            self.dropout_p,
        )  # fmt: skip

    def streams(self, *queries: Tensor) -> tuple[Queries, ...]:
        """The query rows of one stream, or of the content and the query stream."""
        mask = AttentionMask(
            self.key_padding, self.rank_q, self.rank_k, self.bits,
            self.causal, self.same_length, self.see_self,
        )  # fmt: skip
        if len(queries) == 1:
            return (Queries(queries[0], self.segments_q, mask, self.positions, self.seed),)
        content = replace(mask, see_self=True)
        query = replace(mask, see_self=False)
        seed = None if self.seed is None else self.seed + 1
        return (
            Queries(queries[0], self.segments_q, content, None, self.seed),
            Queries(queries[1], self.segments_q, query, self.positions, seed, by_position=True),
        )

    @property
    def gradient_likes(self) -> tuple[Tensor | None, ...]:
        """The arguments that get a gradient; None where there is none."""
        segmented = self.segments_q is not None
        optional = (self.r_s_bias, self.seg_embed) if segmented else (None, None)
        sources = (self.k, self.v, self.k_memory, self.v_memory)
        return *sources, self.r, self.r_w_bias, self.r_r_bias, *optional


def _kernels(backend: str) -> Any:
    """The module of a backend that has this op."""
    if backend == "sdpa":
        return sdpa_attention
    if backend == "cpu":
        return cpu_attention
    if backend == "triton":
        from xlnet_fast.kernels.triton import rel_attention as triton_attention

        return triton_attention
    if backend == "cuda":
        return cuda_attention
    raise BackendUnavailable(f"no registered backend {backend!r} of rel_attention")


def _allocate(queries: Sequence[Tensor], args: Sequence[Any]) -> tuple[Tensor, ...]:
    """Outputs and statistics of each stream; also the fakes."""
    call = _Call(*args)
    outs = [torch.empty_like(q) for q in queries]
    if names(call.backend)[0] in ("cpu", "sdpa"):  # they recompute
        return *outs, *(q.new_empty(0, dtype=torch.float32) for q in queries)
    shapes = [(q.shape[0], q.shape[2], q.shape[1]) for q in queries]
    stats = (
        q.new_empty(shape, dtype=torch.float32) for q, shape in zip(queries, shapes, strict=True)
    )
    return *outs, *stats


def _forward(queries: Sequence[Tensor], args: Sequence[Any]) -> tuple[Tensor, ...]:
    call = _Call(*args)
    results = _allocate(queries, args)
    check_positions(call.positions, call.keys.current)
    live = [s for s, q in enumerate(queries) if q.numel()]
    if live:
        streams, count = call.streams(*queries), len(queries)
        arguments = (
            call.keys,
            [streams[s] for s in live],
            [results[s] for s in live],
            [results[count + s] for s in live],
        )
        launch(call.backend, lambda name: _kernels(name).rel_attention_forward(*arguments))
    return results


def _backward(
    wanted: Sequence[bool],
    grad_outs: Sequence[Tensor],
    outs: Sequence[Tensor],
    stats: Sequence[Tensor],
    queries: Sequence[Tensor],
    args: Sequence[Any],
) -> tuple[Tensor, ...]:
    call = _Call(*args)
    likes = _wanted_likes(wanted, queries, args)
    grads = empty_grads(likes, queries[0])
    asked = [None if like is None else grad for like, grad in zip(likes, grads, strict=True)]
    live = [s for s, q in enumerate(queries) if q.numel()]
    if not live:
        return tuple(grad.zero_() for grad in grads)
    streams = call.streams(*queries)
    arguments = (
        call.keys,
        [streams[s] for s in live],
        [outs[s] for s in live],
        [stats[s] for s in live],
        [grad_outs[s] for s in live],
        [*(asked[s] for s in live), *asked[len(queries) :]],
        torch.are_deterministic_algorithms_enabled(),
    )
    launch(call.backend, lambda name: _kernels(name).rel_attention_backward(*arguments))
    return grads


def _wanted_likes(
    wanted: Sequence[bool], queries: Sequence[Tensor], args: Sequence[Any]
) -> tuple[Tensor | None, ...]:
    """The arguments whose gradient is asked for, None in the place of the others."""
    likes = (*queries, *_Call(*args).gradient_likes)
    return tuple(x if want else None for x, want in zip(likes, wanted, strict=True))


def _register(name: str, count: int) -> None:
    """Attach the above to the schema of an op of ``count`` streams."""

    def split(values: Sequence[Any]) -> list[Sequence[Any]]:
        """Gradients, outputs, statistics, queries and the rest, of a backward op's arguments."""
        return [*(values[g * count : (g + 1) * count] for g in range(4)), values[4 * count :]]

    def fake_backward(wanted: Sequence[bool], *values: Any) -> tuple[Tensor, ...]:
        *_, queries, args = split(values)
        return empty_grads(_wanted_likes(wanted, queries, args), queries[0])

    register(
        name,
        lambda *values: _forward(values[:count], values[count:]),
        lambda *values: _allocate(values[:count], values[count:]),
        lambda wanted, *values: _backward(wanted, *split(values)),
        fake_backward,
        queries=count,
        selective=True,
    )


_register("rel_attention", 1)
_register("two_stream_attention", 2)
