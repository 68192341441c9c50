"""What both kernels of the backward pass make of a tile: its probabilities and their gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xlnet_fast.kernels.pallas import tile_ops as ops
from xlnet_fast.kernels.pallas.operands import (
    Floats,
    Ids,
    Integers,
    Options,
    Table,
    rows_spec,
    statistics_spec,
)


class Saved(NamedTuple):
    """Of the query rows: what came in from above, and what the passes before left."""

    d_out: Any  # (B, N, I, D), dtype of q
    statistics: Any  # (B, N, 2, I) float32: m and l of the forward pass
    delta: Any  # (B, N, 1, I) float32: D = sum of P Z dP


class Tile(NamedTuple):
    """Of T rows and T keys, (T, T) float32 each."""

    p: jax.Array  # P
    kept_p: jax.Array  # Z P
    dp: jax.Array  # Z dP, the gradient of P


def saved_specs(o: Options, head_dim: int, ids: Ids) -> Saved:
    """The blocks of one program."""
    return Saved(
        rows_spec(o, head_dim, ids), statistics_spec(o, 2, ids), statistics_spec(o, 1, ids)
    )


def made_again(
    x: Floats, r: Table, y: Integers, saved: Saved, place: tuple[Any, Any, Any, Any], o: Options
) -> Tile:
    """The tile at `place` = (b, n, i, j)."""
    i, j = place[2:]
    largest, total = (ops.as_column(saved.statistics[0, 0, row : row + 1]) for row in (0, 1))
    p = jnp.exp(ops.scores(x, r, y, i, j, o) - largest) / total
    v = ops.keys_of(x.v, x.v_memory, j, o)
    dp = ops.product(saved.d_out[0, 0], v, ops.ROWS_BY_ROWS)
    if not o.threshold:
        return Tile(p, p, dp)
    factor = ops.dropout(y, *place, o)
    return Tile(p, factor * p, factor * dp)


def score_gradients(tile: Tile, saved: Saved, o: Options) -> jax.Array:
    """dS = scale P (Z dP - D), (T, T) float32."""
    return o.scale * tile.p * (tile.dp - ops.as_column(saved.delta[0, 0]))
