"""From the arguments of a call to the operands of the kernels, and back.

The kernels want heads outside of rows, whole tiles, and rows in the order of their positions. What
comes is (B, I, N, D) of any length: one copy turns it, pads it and clears what padding holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from xlnet_fast.kernels.pallas.arguments import Shared
from xlnet_fast.kernels.pallas.chips import find_chip, find_tile, round_up
from xlnet_fast.kernels.pallas.core import attention
from xlnet_fast.kernels.pallas.operands import Floats, Integers, Options
from xlnet_fast.kernels.pallas.philox import next_seed, seed_words
from xlnet_fast.philox import keep_threshold

HEAD_DIMS = (64, 128)
"""Of the kernels. Another is padded with zeros to the next."""


@dataclass(frozen=True)
class Call:
    """Operands of the kernels but for the query rows."""

    floats: Floats  # without q
    keys: jax.Array | None  # of Integers
    seed: jax.Array | None
    options: Options

    def of_query_stream(self) -> Call:
        """The same for the other stream, which does not see itself and has dropout of its own."""
        seed = None if self.seed is None else next_seed(self.seed)
        return replace(self, options=replace(self.options, see_self=False), seed=seed)


def lay_out(q: jax.Array, shared: Shared, keys: int, memory: int) -> Call:
    """All that the query rows meet; q (B, I, N, D), row i at position i, tells their number."""
    o = _options(q, shared, keys, memory)
    length = keys - memory
    k, v, k_memory, v_memory = (
        None if x is None else heads_first(x, o)
        for x in _sources(shared, memory, bool(o.apart_tiles))
    )
    # Row x of the kernels' table is that of p = x + 1 - (rows) + L; what r lacks counts as zero.
    needed = min(shared.r.shape[1], keys + length - shared.r_start)
    before = o.row_tiles * o.tile - length + shared.r_start - 1
    after = (o.row_tiles + o.key_tiles) * o.tile - needed - before
    r = jnp.transpose(_padded_dim(shared.r[:, :needed]), (0, 2, 1, 3))
    r = lax.pad(r, jnp.zeros((), r.dtype), [(0, 0, 0), (0, 0, 0), (before, after, 0), (0, 0, 0)])
    biases = [shared.r_w_bias, shared.r_r_bias]
    if o.segmented:
        biases += [shared.r_s_bias, shared.seg_embed[1] - shared.seg_embed[0]]
    floats = Floats(None, k, v, k_memory, v_memory, r, _padded_dim(jnp.stack(biases, axis=1)))
    shape = (o.batch, keys)
    return Call(
        floats,
        _numbers((shared.rank_k, shared.segments, shared.key_padding), shape, o),
        seed_words(shared.seed) if o.threshold else None,
        o,
    )


def attend(
    call: Call,
    q: jax.Array,
    rank: jax.Array | None,
    segments: jax.Array | None,
    numbers: jax.Array | None = None,
) -> jax.Array:
    """Output (B, I, N, D) of query rows whose row i sits at position i.

    Args:
        rank, segments: (B, I). numbers: (B, I), which row of dropout's mask each has; default i.
    """
    if q.size == 0:
        return q
    o = replace(call.options, numbered=numbers is not None and call.seed is not None)
    of_rows = (rank, segments, numbers if o.numbered else None)
    integers = Integers(rows=_numbers(of_rows, q.shape[:2], o), keys=call.keys, seed=call.seed)
    out = attention(o, call.floats._replace(q=heads_first(q, o)), integers)
    return jnp.transpose(out, (0, 2, 1, 3))[:, : q.shape[1], :, : q.shape[3]]


def heads_first(x: jax.Array, o: Options) -> jax.Array:
    """(B, I, N, D) to (B, N, I, D) of whole tiles."""
    x = jnp.transpose(_padded_dim(x), (0, 2, 1, 3))
    return jnp.pad(x, [(0, 0), (0, 0), (0, -x.shape[2] % o.tile), (0, 0)])


# --- rows at positions ---------------------------------------------------------------------------


def rows_of_positions(positions: jax.Array, length: int) -> jax.Array:
    """(B, L) int32, the row that sits at each position, -1 where none does; of (B, I)."""
    batch, rows = positions.shape
    beyond = jnp.where(positions < 0, length, positions)
    row = jnp.broadcast_to(jnp.arange(rows, dtype=jnp.int32), (batch, rows))
    empty = jnp.full((batch, length), -1, jnp.int32)
    return empty.at[jnp.arange(batch)[:, None], beyond].set(row, mode="drop")


def spread(x: jax.Array | None, numbers: jax.Array) -> jax.Array | None:
    """Rows (B, I, ...) to their places among all L, zero where there is none."""
    if x is None:
        return None
    if x.shape[1] == 0:
        return jnp.zeros((*numbers.shape, *x.shape[2:]), x.dtype)
    index = numbers.reshape(*numbers.shape, *[1] * (x.ndim - 2))
    return jnp.where(index < 0, 0, jnp.take_along_axis(x, jnp.maximum(index, 0), axis=1))


def collect(out: jax.Array, positions: jax.Array, numbers: jax.Array) -> jax.Array:
    """The rows (B, I, N, D) of (B, L, N, D): zero where absent.

    NaN for a position that comes twice, but for one of the two, or that there is not: ``spread``
    had no place for that row.
    """
    if out.shape[1] == 0 or positions.shape[1] == 0:
        return jnp.zeros((*positions.shape, *out.shape[2:]), out.dtype)
    place = jnp.maximum(positions, 0)
    has_place = jnp.take_along_axis(numbers, place, axis=1) == jnp.arange(positions.shape[1])
    rows = jnp.take_along_axis(out, place[:, :, None, None], axis=1)
    rows = jnp.where(has_place[:, :, None, None], rows, jnp.nan)
    return jnp.where((positions < 0)[:, :, None, None], 0, rows)


# --- pieces --------------------------------------------------------------------------------------


def _options(q: jax.Array, shared: Shared, keys: int, memory: int) -> Options:
    batch, rows, heads, dim = q.shape
    chip = find_chip(shared.chip)
    kernel_dim = _padded_dim(q).shape[3]
    tile = shared.tile or find_tile(chip, rows, keys, kernel_dim, q.dtype.itemsize)
    is_apart = shared.k_memory is not None and memory > 0 and memory % tile == 0 and memory < keys
    left, right, chunk = shared.flags.limits
    return Options(
        batch=batch,
        heads=heads,
        groups=shared.r.shape[0],
        tile=tile,
        row_tiles=round_up(rows, tile) // tile,
        key_tiles=round_up(keys, tile) // tile,
        apart_tiles=memory // tile if is_apart else 0,
        keys=keys,
        memory=memory,
        scale=dim**-0.5 if shared.scale is None else shared.scale,
        causal=shared.causal,
        same_length=shared.same_length,
        see_self=shared.see_self,
        # What reaches beyond all keys reaches no farther for being a number that overflows.
        window=(min(left, 2 * keys), min(right, 2 * keys), min(chunk, keys)),
        padded=shared.key_padding is not None,
        ranked=shared.rank_k is not None,
        segmented=shared.segments is not None,
        numbered=False,
        dropout_p=shared.dropout_p,
        threshold=keep_threshold(shared.dropout_p),
        chip=chip,
        interpret=shared.interpret,
    )


def _sources(shared: Shared, memory: int, apart: bool) -> tuple[Any, ...]:
    """k, v, k_memory and v_memory as the kernels get them, cleared of what padding holds."""
    current, past = (shared.k, shared.v), (shared.k_memory, shared.v_memory)
    padding = shared.key_padding
    if apart:
        of_past = None if padding is None else padding[:, :memory]
        of_current = None if padding is None else padding[:, memory:]
        return *_cleared(current, of_current), *_cleared(past, of_past)
    if past[0] is not None:
        current = tuple(jnp.concatenate(pair, axis=1) for pair in zip(past, current, strict=True))
    return *_cleared(current, padding), None, None


def _cleared(sources: tuple[Any, ...], padding: jax.Array | None) -> tuple[Any, ...]:
    """NaN and infinity of padded keys or values (B, J, N, D) made zero, as 0 * NaN is NaN."""
    if padding is None:
        return sources
    bad = [padding[:, :, None, None] & ~jnp.isfinite(x) for x in sources]
    return tuple(jnp.where(b, 0, x) for b, x in zip(bad, sources, strict=True))


def _numbers(parts: tuple[Any, ...], shape: tuple[int, ...], o: Options) -> jax.Array | None:
    """Parts (B, I) as one int32 array (B, 3, I) of whole tiles; None where all are None."""
    if all(part is None for part in parts):
        return None
    zeros = jnp.zeros(shape, jnp.int32)
    filled = [zeros if part is None else part.astype(jnp.int32) for part in parts]
    padding = [(0, 0), (0, -shape[1] % o.tile)]
    return jnp.stack([jnp.pad(part, padding) for part in filled], axis=1)


def _padded_dim(x: jax.Array) -> jax.Array:
    """The last dimension D padded with zeros to that of the kernels."""
    wanted = next(dim for dim in HEAD_DIMS if x.shape[-1] <= dim)
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, wanted - x.shape[-1])])
