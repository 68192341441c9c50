"""What the kernels do with a tile of T query rows and T keys: its scores, its mask, its skew.

Row a of a tile at rows i0 .. and keys j0 .. needs r at p = j0 + t - (i0 + a) + L. r is laid out so
that two neighbouring blocks of T rows begin at p = j0 - i0 + L - T + 1. Their products with the
rows, (T, 2T) raw scores, have the score of (a, t) in column T - 1 - a + t: each row's stretch of T
columns lies one to the left of that of the row above.

Integers are divided by ``lax.div`` and shifts: ``//`` asks JAX for the TPU that it runs on, and
there is none where a program is compiled for another machine.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu

from xlnet_fast.kernels.pallas import philox
from xlnet_fast.kernels.pallas.operands import (
    NUMBER,
    PADDED,
    RANK,
    SEGMENT,
    Floats,
    Integers,
    Options,
    Table,
)
from xlnet_fast.masks import HIDDEN_SCORE

ROWS_BY_ROWS = ((1,), (1,))  # a b^T
ROWS_BY_COLUMNS = ((1,), (0,))  # a b
COLUMNS_BY_COLUMNS = ((0,), (0,))  # a^T b


def product(a: jax.Array, b: jax.Array, contracted: Any) -> jax.Array:
    """A matrix product, summed in fp32; of fp32 operands with all their bits."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    dimensions = (contracted, ((), ()))
    return lax.dot_general(a, b, dimensions, precision, preferred_element_type=jnp.float32)


# --- the skew ------------------------------------------------------------------------------------


def skew(raw: jax.Array, strided_roll: bool) -> jax.Array:
    """(T, T) scores by keys from (T, 2T) raw ones: out[a, t] = raw[a, T - 1 - a + t]."""
    tile = raw.shape[0]
    if strided_roll:
        return pltpu.roll(raw, tile + 1, 1, stride=1, stride_axis=0)[:, :tile]
    return _rolled_by_row(pltpu.roll(raw, tile + 1, 1), to_the_left=False)[:, :tile]


def unskew(x: jax.Array) -> jax.Array:
    """The way back, (T, T) to (T, 2T), zero where the row has no key: out[a, T - 1 - a + t].

    Rotations by the bits of the row number on every chip: the compiler takes no negative stride.
    """
    wide = jnp.concatenate([x, jnp.zeros_like(x)], axis=1)
    return _rolled_by_row(pltpu.roll(wide, x.shape[0] - 1, 1), to_the_left=True)


def _rolled_by_row(x: jax.Array, to_the_left: bool) -> jax.Array:
    """Row a of (T, 2T) rotated by a, T a power of two."""
    tile, width = x.shape
    row = lax.broadcasted_iota(jnp.int32, x.shape, 0)
    for bit in range(tile.bit_length() - 1):
        step = 1 << bit
        moved = pltpu.roll(x, width - step if to_the_left else step, 1)
        x = jnp.where((row & step) != 0, moved, x)
    return x


# --- scores --------------------------------------------------------------------------------------


def with_bias(x: Floats, number: int) -> jax.Array:
    """q plus one of the biases, (T, D), in the dtype of q as everywhere."""
    return x.q[0, 0] + x.biases[0, number : number + 1]


def keys_of(current: Any, memory: Any, j: Any, o: Options) -> jax.Array:
    """The tile (T, D) of keys or values, from the source that has it."""
    if memory is None:
        return current[0, 0]
    return jnp.where(j < o.apart_tiles, memory[0, 0], current[0, 0])


def scores(x: Floats, r: Table, y: Integers, i: Any, j: Any, o: Options) -> jax.Array:
    """Scaled and masked, (T, T) float32; -inf where there is no such key."""
    content = product(with_bias(x, 0), keys_of(x.k, x.k_memory, j, o), ROWS_BY_ROWS)
    q_r = with_bias(x, 1)
    raw = [product(q_r, block[0, 0], ROWS_BY_ROWS) for block in r]
    total = content + skew(jnp.concatenate(raw, axis=1), o.chip.strided_roll)
    if o.segmented:
        difference = x.biases[0, 3:4].astype(jnp.float32)
        weight = jnp.sum(with_bias(x, 2).astype(jnp.float32) * difference, axis=1, keepdims=True)
        total = total + jnp.where(segments_differ(y, o), weight, 0.0)
    total = total * o.scale
    hidden = _hidden(y, i, j, o)
    if hidden is not None:
        # Added, as in HF: it absorbs the score, and a row that sees nothing becomes uniform.
        total = total + jnp.where(hidden, HIDDEN_SCORE, 0.0)
    return total if _is_whole(o) else jnp.where(_is_key(j, o), total, -jnp.inf)


def dropout(y: Integers, b: Any, n: Any, i: Any, j: Any, o: Options) -> jax.Array:
    """The factor of each probability, (T, T): 0, or 1 / (1 - p)."""
    numbers = of_rows(y, NUMBER) if o.numbered else _positions(i, o)
    keep = philox.kept(y.seed, o.threshold, b * o.heads + n, numbers, j * o.tile)
    return keep * (1.0 / (1.0 - o.dropout_p))


def segments_differ(y: Integers, o: Options) -> jax.Array:
    """(T, T) bool."""
    return of_rows(y, SEGMENT) != y.keys[0][SEGMENT : SEGMENT + 1]


def of_rows(y: Integers, which: int) -> jax.Array:
    """One of the numbers of the query rows, (T, 1): in main memory a column would take 128."""
    return as_column(y.rows[0][which : which + 1])


def as_column(x: jax.Array) -> jax.Array:
    """(1, T) to (T, 1)."""
    return jnp.transpose(jnp.broadcast_to(x, (8, x.shape[1])))[:, :1]


def as_row(x: jax.Array) -> jax.Array:
    """(T, 1) to (1, T)."""
    return jnp.transpose(jnp.broadcast_to(x, (x.shape[0], 128)))[:1]


# --- the mask ------------------------------------------------------------------------------------


def is_seen(i: Any, j: Any, o: Options) -> Any:
    """Whether any row of a tile sees any of its keys, as far as ``may_leave_out`` goes."""
    lowest, highest = i * o.tile, (i + 1) * o.tile - 1  # positions
    first, last = j * o.tile, (j + 1) * o.tile - 1  # keys
    left, right, chunk = o.window
    seen = first >= 0  # always, as something to begin with
    if o.causal:
        seen = seen & (first <= o.memory + highest)
    if o.same_length:
        seen = seen & (last >= lowest)
    if left >= 0:
        seen = seen & (last >= _start(lowest, o) - left)
    if right >= 0:
        seen = seen & (first < _start(highest, o) + (chunk + right))
    return seen


def _hidden(y: Integers, i: Any, j: Any, o: Options) -> jax.Array | None:
    """(T, T) bool, or None where nothing is hidden: ``AttentionMask.hidden`` of a tile."""
    position, key = _positions(i, o), _keys(j, o)
    left, right, chunk = o.window
    parts = []
    if o.padded:
        parts.append(jnp.broadcast_to(y.keys[0][PADDED : PADDED + 1], key.shape) != 0)
    if o.ranked:
        parts.append(of_rows(y, RANK) <= y.keys[0][RANK : RANK + 1])
    if o.causal:
        parts.append(key > position + o.memory)
    if o.same_length:
        parts.append(key < position)
    if left >= 0:
        parts.append(key < _start(position, o) - left)
    if right >= 0:
        parts.append(key >= _start(position, o) + (chunk + right))
    if not parts:
        return None
    hidden = parts[0]
    for part in parts[1:]:
        hidden = hidden | part
    return hidden & (key != position + o.memory) if o.see_self else hidden


def _start(position: Any, o: Options) -> Any:
    """The first key of the chunk in which a position lies."""
    chunk = o.window[2]
    return o.memory + (position if chunk == 1 else lax.div(position, chunk) * chunk)


def _positions(i: Any, o: Options) -> jax.Array:
    return i * o.tile + lax.broadcasted_iota(jnp.int32, (o.tile, 1), 0)


def _keys(j: Any, o: Options) -> jax.Array:
    return j * o.tile + lax.broadcasted_iota(jnp.int32, (o.tile, o.tile), 1)


def _is_key(j: Any, o: Options) -> jax.Array:
    return _keys(j, o) < o.keys


def _is_whole(o: Options) -> bool:
    """Whether the keys fill their tiles."""
    return o.keys == o.key_tiles * o.tile
