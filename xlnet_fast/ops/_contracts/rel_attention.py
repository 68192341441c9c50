"""torch.library contracts of rel_attention and two_stream_attention.

Beside its outputs an op returns statistics of their rows, which its backward op takes: fp32
(B, N, I), or of shape (0,) from a backend that needs none. They have no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xlnet_fast import reference
from xlnet_fast.errors import BackendUnavailable
from xlnet_fast.kernels.cpu import rel_attention as cpu_attention
from xlnet_fast.kernels.cuda import rel_attention as cuda_attention
from xlnet_fast.kernels.sdpa import rel_attention as sdpa_attention
from xlnet_fast.operands import Keys, Queries
from xlnet_fast.ops._contracts._registry import (
    ATTENTION_PARTS,
    LIBRARY,
    Differentiable,
    empty_grads,
    launch,
    names,
    parts_of,
    register_differentiable,
)
from xlnet_fast.ops._validation import check_positions
from xlnet_fast.ops.qualification import proof

_ATTENTION = (
    "Tensor k, Tensor v, Tensor? k_memory, Tensor? v_memory, Tensor r, Tensor r_w_bias, "
    "Tensor r_r_bias, Tensor? r_s_bias, Tensor? seg_embed, Tensor? segments_q, "
    f"Tensor? segments_k, {ATTENTION_PARTS}, str backend"
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


def call_of(
    queries: Sequence[Tensor], args: Sequence[Any]
) -> tuple[Keys, tuple[Queries, ...], str]:
    """Keys, streams and backend, from the schema's arguments, ``args`` being those of _ATTENTION.

    The query rows are those of one stream, or of the content and the query stream.
    """
    *shared, segments, key_segments = args[:11]
    mask, positions, seed, (memory_length, r_start, *numbers) = parts_of(args[11:])
    k, _, k_memory, *_ = shared
    # A traced program keeps the number it was traced with, which tensors tell, if they do.
    if k_memory is not None:
        memory_length = k_memory.shape[1]
    elif positions is None or len(queries) == 2:
        memory_length = k.shape[1] - queries[0].shape[1]
    keys = Keys(*[*shared, key_segments, memory_length, *numbers, r_start])
    backend = args[-1]
    if len(queries) == 1:
        return keys, (Queries(queries[0], segments, mask, positions, seed),), backend
    content, query = (replace(mask, see_self=see_self) for see_self in (True, False))
    seeds = seeds_of(seed, 2)
    streams = (
        Queries(queries[0], segments, content, None, seeds[0]),
        Queries(queries[1], segments, query, positions, seeds[1], by_position=True),
    )
    return keys, streams, backend


def seeds_of(seed: Tensor | None, streams: int) -> tuple[Tensor | None, ...]:
    """One seed for each stream."""
    return tuple(None if seed is None else seed + s if s else seed for s in range(streams))


def _kernels(backend: str) -> Any:
    """The module of a backend that has this op."""
    if backend == "sdpa":
        return sdpa_attention
    if backend == "cpu":
        return cpu_attention
    if backend == "triton":
        from xlnet_fast.kernels.triton import rel_attention as triton_attention
        from xlnet_fast.kernels.triton import tiles

        tiles.recorded_on = proof.recorded_tiles
        return triton_attention
    if backend == "cuda":
        return cuda_attention
    if backend == "pallas":
        raise BackendUnavailable("backend 'pallas' runs where JAX does: this tensor is not there")
    raise BackendUnavailable(f"no registered backend {backend!r} of rel_attention")


def _allocate(queries: Sequence[Tensor], args: Sequence[Any]) -> tuple[Tensor, ...]:
    """Outputs and statistics of each stream; also the fakes."""
    outs = [torch.empty_like(q) for q in queries]
    if names(args[-1])[0] in ("cpu", "sdpa", "pallas"):  # they recompute
        return *outs, *(q.new_empty(0, dtype=torch.float32) for q in queries)
    shapes = [(q.shape[0], q.shape[2], q.shape[1]) for q in queries]
    stats = (
        q.new_empty(shape, dtype=torch.float32) for q, shape in zip(queries, shapes, strict=True)
    )
    return *outs, *stats


def _forward(queries: Sequence[Tensor], args: Sequence[Any]) -> tuple[Tensor, ...]:
    keys, streams, backend = call_of(queries, args)
    results = _allocate(queries, args)
    check_positions(streams[-1].positions, keys.current)
    live = [s for s, q in enumerate(queries) if q.numel()]
    if live:
        stats = results[len(queries) :]
        arguments = (keys, *([x[s] for s in live] for x in (streams, results, stats)))
        launch(backend, lambda name: _kernels(name).rel_attention_forward(*arguments))
    return results


def _backward(
    wanted: Sequence[bool],
    grad_outs: Sequence[Tensor],
    outs: Sequence[Tensor],
    stats: Sequence[Tensor],
    queries: Sequence[Tensor],
    args: Sequence[Any],
) -> tuple[Tensor, ...]:
    likes = _wanted_likes(wanted, queries, args)
    grads = empty_grads(likes, queries[0])
    asked = [None if like is None else grad for like, grad in zip(likes, grads, strict=True)]
    live = [s for s, q in enumerate(queries) if q.numel()]
    if not live:
        return tuple(grad.zero_() for grad in grads)
    keys, streams, backend = call_of(queries, args)
    arguments = (
        keys,
        *([x[s] for s in live] for x in (streams, outs, stats, grad_outs)),
        [*(asked[s] for s in live), *asked[len(queries) :]],
        torch.are_deterministic_algorithms_enabled(),
    )
    launch(backend, lambda name: _kernels(name).rel_attention_backward(*arguments))
    return grads


def _wanted_likes(
    wanted: Sequence[bool], queries: Sequence[Tensor], args: Sequence[Any]
) -> tuple[Tensor | None, ...]:
    """The arguments whose gradient is asked for, None in the place of the others."""
    *shared, r_s_bias, seg_embed, segments_q = args[:10]
    segment_operands = (None, None) if segments_q is None else (r_s_bias, seg_embed)
    likes = (*queries, *shared, *segment_operands)
    return tuple(x if want else None for x, want in zip(likes, wanted, strict=True))


def _plain(queries: Sequence[Tensor], args: Sequence[Any]) -> tuple[Tensor, ...]:
    """Outputs of each stream in PyTorch's own code, which has all derivatives."""
    keys, streams, _ = call_of(queries, args)
    options: dict[str, Any] = {
        "k_memory": keys.k_memory, "v_memory": keys.v_memory, "r_s_bias": keys.r_s_bias,
        "seg_embed": keys.seg_embed, "scale": keys.scale, "dropout_p": keys.dropout_p,
        "mask": streams[0].mask, "positions": streams[-1].positions, "seed": streams[0].seed,
        "r_start": keys.r_start,
    }  # fmt: skip
    shared = (keys.k, keys.v, keys.r, keys.r_w_bias, keys.r_r_bias)
    if len(queries) == 2:
        q_h, q_g = queries
        return reference.two_stream_attention(q_h, q_g, *shared, **options, segments=keys.segments)
    out = reference.rel_attention(
        queries[0], *shared, **options, segments_q=streams[0].segments, segments_k=keys.segments,
        memory_length=keys.memory_length,
    )  # fmt: skip
    return (out,)


def _define(name: str, count: int) -> Differentiable:
    """Attach the above to the schema of an op of ``count`` streams."""

    def split(values: Sequence[Any]) -> list[Sequence[Any]]:
        """Gradients, outputs, statistics, queries and the rest, of a backward op's arguments."""
        return [*(values[g * count : (g + 1) * count] for g in range(4)), values[4 * count :]]

    def fake_backward(wanted: Sequence[bool], *values: Any) -> tuple[Tensor, ...]:
        *_, queries, args = split(values)
        return empty_grads(_wanted_likes(wanted, queries, args), queries[0])

    op = Differentiable(
        name,
        lambda *values: _forward(values[:count], values[count:]),
        lambda wanted, *values: _backward(wanted, *split(values)),
        lambda *values: _plain(values[:count], values[count:]),
        queries=count,
        selective=True,
    )
    register_differentiable(
        op, lambda *values: _allocate(values[:count], values[count:]), fake_backward
    )
    return op


REL_ATTENTION = _define("rel_attention", 1)
TWO_STREAM_ATTENTION = _define("two_stream_attention", 2)
