"""Relative attention of one stream and of two on a TPU: JAX arrays in, JAX arrays out.

JAX differentiates what is here and in ``layout.py``; the kernels bring their own gradients
(``core.py``).
"""

from __future__ import annotations

from typing import Any

import jax

from xlnet_fast.kernels.pallas import arguments
from xlnet_fast.kernels.pallas.arguments import Shared
from xlnet_fast.kernels.pallas.layout import attend, collect, lay_out, rows_of_positions, spread


def rel_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    r: jax.Array,
    r_w_bias: jax.Array,
    r_r_bias: jax.Array,
    *,
    k_memory: jax.Array | None = None,
    v_memory: jax.Array | None = None,
    r_s_bias: jax.Array | None = None,
    seg_embed: jax.Array | None = None,
    segments_q: jax.Array | None = None,
    segments_k: jax.Array | None = None,
    key_padding: jax.Array | None = None,
    rank_q: jax.Array | None = None,
    rank_k: jax.Array | None = None,
    bits: None = None,
    causal: bool = False,
    same_length: bool = False,
    see_self: bool = False,
    window: tuple[int | None, int | None] | None = None,
    chunk: int = 1,
    positions: jax.Array | None = None,
    memory_length: int | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | jax.Array | None = None,
    r_start: int = 0,
    tile: int | None = None,
    chip: str | None = None,
    interpret: Any = False,
) -> jax.Array:
    """Attention with Transformer-XL relative positions and XLNet segments.

    Formula and source as in ``xlnet_fast.ops.rel_attention``, whose arguments these are; the parts
    of its mask are arguments of their own. Differentiable in every floating argument.

    Args:
        q: (B, I, N, D), bfloat16 or float32, D at most 128; all floating arguments share the dtype.
        k, v: (B, J, N, D), memory first; (B, L, N, D) where the memory is given apart.
        k_memory, v_memory: (B, M, N, D). Where M is a multiple of the tile the kernels read them
            where they are; else the copy that brings the heads outside joins both sources.
        r: (G, P, N or 1, D). r_w_bias, r_r_bias: (N, D).
        r_s_bias, seg_embed, segments_q, segments_k: (N, D), (2, N, D), (B, I) and (B, J) integers.
        key_padding: (B, J) bool, True hides. NaN in a padded key or value reaches nobody.
        rank_q, rank_k: (B, I) and (B, J) integers.
        bits: refused; other devices' masks may have them.
        causal, same_length, see_self, window, chunk: static, as in ``xlnet_fast.AttentionMask``.
        positions: (B, I) integers in 0..L-1, negative for an absent row, whose output is zero. The
            skew moves neighbouring rows by one each, so rows at positions of their own are first
            spread over all L: the kernels take the time of L rows. No position may come twice: that
            is an ArgumentError, under ``jax.jit``, where nobody can look, rows of NaN.
        memory_length: M; default J - I.
        scale: default 1 / sqrt(D).
        seed: with dropout_p > 0: a Python int, or its low and high word, (2,) uint32. The mask is
            bit for bit that of ``xlnet_fast.philox.keep_mask``.
        tile: rows and keys of a tile, a power of two from 16 on, of compiled kernels from 128 on;
            default: the largest that suits chip and lengths.
        chip: "v4", "v5e", "v5p", "v6e" or "tpu7x"; default: the TPU that JAX runs on. Where it has
            none, the kernels are such that any of these can run them.
        interpret: True, or parameters of ``pltpu.InterpretParams``: run on the CPU.

    Returns:
        (B, I, N, D) in the dtype of q.

    Raises:
        ShapeError, ArgumentError: name the argument, what it is and what is expected.
    """
    shared = Shared(
        k=k, v=v, k_memory=k_memory, v_memory=v_memory, r=r, r_w_bias=r_w_bias, r_r_bias=r_r_bias,
        r_s_bias=r_s_bias, seg_embed=seg_embed, segments=segments_k, key_padding=key_padding,
        rank_k=rank_k, causal=causal, same_length=same_length, see_self=see_self, window=window,
        chunk=chunk, scale=scale, dropout_p=dropout_p, seed=seed, r_start=r_start, tile=tile,
        chip=chip, interpret=interpret,
    )  # fmt: skip
    located = positions is not None
    keys, memory = arguments.check(q, shared, memory_length, located, bits)
    arguments.check_rows(q, positions=positions, rank_q=rank_q, segments_q=segments_q)
    arguments.check_together(rank_q=rank_q, rank_k=rank_k)
    arguments.check_together(segments_q=segments_q, segments_k=segments_k)
    if positions is None:
        return attend(lay_out(q, shared, keys, memory), q, rank_q, segments_q)
    arguments.check_positions(positions, keys - memory)
    numbers = rows_of_positions(positions, keys - memory)
    q, rank_q, segments_q = (spread(x, numbers) for x in (q, rank_q, segments_q))
    if keys == memory:  # all rows are absent
        return collect(q, positions, numbers)
    out = attend(lay_out(q, shared, keys, memory), q, rank_q, segments_q, numbers)
    return collect(out, positions, numbers)


def two_stream_attention(
    q_h: jax.Array,
    q_g: jax.Array,
    k: jax.Array,
    v: jax.Array,
    r: jax.Array,
    r_w_bias: jax.Array,
    r_r_bias: jax.Array,
    *,
    k_memory: jax.Array | None = None,
    v_memory: jax.Array | None = None,
    r_s_bias: jax.Array | None = None,
    seg_embed: jax.Array | None = None,
    segments: jax.Array | None = None,
    key_padding: jax.Array | None = None,
    rank_q: jax.Array | None = None,
    rank_k: jax.Array | None = None,
    bits: None = None,
    causal: bool = False,
    same_length: bool = False,
    window: tuple[int | None, int | None] | None = None,
    chunk: int = 1,
    positions: jax.Array | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | jax.Array | None = None,
    r_start: int = 0,
    tile: int | None = None,
    chip: str | None = None,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """XLNet's content and query stream over the same keys, values and positions.

    Source: XLNet section 2.3. Arguments not listed are those of ``rel_attention``; M = J - I.

    Args:
        q_h: (B, I, N, D) content queries. q_g: (B, I', N, D) of the query stream.
        segments: (B, J) integers; query rows take theirs from it.
        rank_q: (B, I), by position; a row of the query stream obeys that of its own. The content
            stream sees itself whatever the mask says.
        positions: (B, I') of the query stream's rows; default: I' = I, row i at position i.
        seed: the query stream's dropout uses ``seed + 1``.

    Returns:
        (B, I, N, D) and (B, I', N, D).

    Raises:
        ShapeError, ArgumentError: as ``rel_attention``.
    """
    shared = Shared(
        k=k, v=v, k_memory=k_memory, v_memory=v_memory, r=r, r_w_bias=r_w_bias, r_r_bias=r_r_bias,
        r_s_bias=r_s_bias, seg_embed=seg_embed, segments=segments, key_padding=key_padding,
        rank_k=rank_k, causal=causal, same_length=same_length, see_self=True, window=window,
        chunk=chunk, scale=scale, dropout_p=dropout_p, seed=seed, r_start=r_start, tile=tile,
        chip=chip, interpret=interpret,
    )  # fmt: skip
    keys, memory = arguments.check(q_h, shared, None, False, bits)
    arguments.check_rows(q_h, rank_q=rank_q)
    arguments.check_together(rank_q=rank_q, rank_k=rank_k)
    arguments.check_query_stream(q_h, q_g, positions)
    content = lay_out(q_h, shared, keys, memory)
    query = content.of_query_stream()
    segments_q = None if segments is None else segments[:, memory:]
    out_h = attend(content, q_h, rank_q, segments_q)
    if positions is None:
        return out_h, attend(query, q_g, rank_q, segments_q)
    arguments.check_positions(positions, keys - memory)
    numbers = rows_of_positions(positions, keys - memory)
    out_g = attend(query, spread(q_g, numbers), rank_q, segments_q, numbers)
    return out_h, collect(out_g, positions, numbers)
