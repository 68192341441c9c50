"""Dropout masks of a tile, bit for bit those of ``xlnet_fast.philox``.

One evaluation of Philox gives the words of four neighbouring keys. A tile of T rows and T keys
needs T x T/4 of them, which would leave three quarters of the lanes idle: four stretches of T/4
rows lie side by side instead. Rotations bring the four words of a row back together, word after
word, and a product with a permutation puts them into the order of keys; zeros and ones stay exact
in it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.pallas import tpu as pltpu

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
SEEDS = range(-(2**63), 2**63)


def seed_words(seed: Any) -> jax.Array:
    """Low and high word, (2,) uint32, of a Python int; what is an array is that already."""
    if not isinstance(seed, int):
        return seed
    return jnp.asarray(np.array([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF], np.uint32))


def next_seed(seed: jax.Array) -> jax.Array:
    """``seed + 1`` as a 64-bit number, (2,) uint32."""
    low = seed[0] + jnp.uint32(1)
    return jnp.stack([low, seed[1] + (low == 0).astype(jnp.uint32)])


def kept(seed: Any, threshold: int, head: Any, numbers: jax.Array, first_key: Any) -> jax.Array:
    """Which scores of a tile dropout keeps, (T, T) float32 of ones and zeros.

    Args:
        seed: reference to (2,) uint32. threshold: of ``xlnet_fast.philox.keep_threshold``.
        head: b * N + n. numbers: (T, 1) int32, the i of each row. first_key: of the tile.
    """
    tile = numbers.shape[0]
    quarter = tile // 4
    shape = (quarter, tile)
    lane = lax.broadcasted_iota(jnp.int32, shape, 1)
    stretch = lax.shift_right_logical(lane, quarter.bit_length() - 1)  # which rows, which word
    rows = jnp.broadcast_to(numbers[:quarter], shape)
    for s in range(1, 4):
        rows = jnp.where(stretch == s, numbers[s * quarter : (s + 1) * quarter], rows)
    groups = lax.shift_right_logical(first_key, 2) + (lane & (quarter - 1))
    counter = [groups, rows, jnp.full(shape, head, jnp.int32), jnp.zeros(shape, jnp.int32)]
    words = philox4x32([c.astype(jnp.uint32) for c in counter], [seed[0], seed[1]])
    keeps = [jnp.where(word >= jnp.uint32(threshold), 1.0, 0.0) for word in words]
    stretches = []
    for s in range(4):
        side_by_side = _rolled(keeps[0], -s * quarter)
        for w in range(1, 4):
            rolled = _rolled(keeps[w], (w - s) * quarter)
            side_by_side = jnp.where(stretch == w, rolled, side_by_side)
        stretches.append(side_by_side)
    by_word = jnp.concatenate(stretches, axis=0).astype(jnp.bfloat16)  # column w * T/4 + group
    return jnp.dot(by_word, _by_key(tile), preferred_element_type=jnp.float32)


def keep_mask(
    seed: jax.Array,
    threshold: int,
    heads: int,
    rows: tuple[int, int],
    keys: int,
    batch_range: tuple[int, int],
) -> jax.Array:
    """``xlnet_fast.philox.keep_mask`` outside of kernels: (b1 - b0, N, i1 - i0, J) bool.

    Args:
        seed: (2,) uint32. threshold: of ``xlnet_fast.philox.keep_threshold``.
    """
    first, last = batch_range
    counter = [
        jnp.arange(-(-keys // 4), dtype=jnp.uint32),  # [J/4]
        jnp.arange(*rows, dtype=jnp.uint32)[:, None],  # [I, 1]
        jnp.arange(first * heads, last * heads, dtype=jnp.uint32).reshape(-1, heads, 1, 1),
        jnp.uint32(0),
    ]
    words = jnp.stack(jnp.broadcast_arrays(*philox4x32(counter, [seed[0], seed[1]])), axis=-1)
    return (words >= jnp.uint32(threshold)).reshape(*words.shape[:3], -1)[..., :keys]


def philox4x32(counter: list[jax.Array], key: list[jax.Array]) -> list[jax.Array]:
    """Philox4x32-10 on uint32; as ``xlnet_fast.philox.philox4x32``."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + jnp.uint32(_WEYL[0]), k1 + jnp.uint32(_WEYL[1])
    return [c0, c1, c2, c3]


def _multiply(word: jax.Array, constant: int) -> tuple[jax.Array, jax.Array]:
    """High and low 32 bits of word * constant, from products of halves: a TPU has no wider one."""
    low16, upper, lower = jnp.uint32(0xFFFF), constant >> 16, constant & 0xFFFF
    word_upper, word_lower = word >> 16, word & low16
    ll, lu = word_lower * jnp.uint32(lower), word_lower * jnp.uint32(upper)
    ul, uu = word_upper * jnp.uint32(lower), word_upper * jnp.uint32(upper)
    carry = ((ll >> 16) + (lu & low16) + (ul & low16)) >> 16
    return uu + (lu >> 16) + (ul >> 16) + carry, word * jnp.uint32(constant)


def _rolled(x: jax.Array, shift: int) -> jax.Array:
    """Columns moved to the right, round the end."""
    shift %= x.shape[1]
    return pltpu.roll(x, shift, 1) if shift else x


def _by_key(tile: int) -> jax.Array:
    """(T, T) permutation: column w * T/4 + g goes to 4 g + w."""
    source = lax.broadcasted_iota(jnp.int32, (tile, tile), 0)
    key = lax.broadcasted_iota(jnp.int32, (tile, tile), 1)
    wanted = (key & 3) * (tile // 4) + lax.shift_right_logical(key, 2)
    return jnp.where(source == wanted, 1.0, 0.0).astype(jnp.bfloat16)
