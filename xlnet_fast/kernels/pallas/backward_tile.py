"""What both kernels of the backward pass make of a tile: probabilities and gradients of scores."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from xlnet_fast.kernels.pallas import tile_ops as ops
from xlnet_fast.kernels.pallas.operands import (
    Floats,
    Ids,
    Integers,
    Options,
    Table,
    rows_spec,
)


class Saved(NamedTuple):
    """Of the query rows: what came in from above, and what the forward pass left."""

    d_out: Any  # (B, N, I, D), dtype of q
    log_sum: Any  # (B, N, 1, I) float32
    delta: Any  # (B, N, 1, I) float32: dO . out


def saved_specs(o: Options, head_dim: int, ids: Ids) -> Saved:
    """The blocks of one program."""
    one_number = rows_spec(o, 0, ids)
    return Saved(rows_spec(o, head_dim, ids), one_number, one_number)


def tile_gradients(
    x: Floats, r: Table, y: Integers, saved: Saved, place: tuple[Any, Any, Any, Any], o: Options
) -> tuple[jax.Array, jax.Array]:
    """dS = scale P (Z dP - D) and Z P of the tile at `place` = (b, n, i, j), (T, T) float32."""
    i, j = place[2:]
    log_sum, delta = (ops.as_column(row[0, 0]) for row in (saved.log_sum, saved.delta))
    p = ops.probabilities(ops.scores(x, r, y, i, j, o), log_sum, j, o)
    v = ops.keys_of(x.v, x.v_memory, j, o)
    dp = ops.product(saved.d_out[0, 0], v, ops.ROWS_BY_ROWS)
    if not o.threshold:
        return o.scale * p * (dp - delta), p
    factor = ops.dropout(y, *place, o)
    return o.scale * p * (factor * dp - delta), factor * p
