"""Forward pass: for each tile of rows an online softmax over tile after tile of keys.

    S = scale (q_w k^T + skew(q_r r^T) + segments), masked
    m' = max(m, max S),  P = exp(S - m'),  l' = exp(m - m') l + sum P,  A' = exp(m - m') A + Z P v
    out = A / l

with Z the dropout factor. Four products of T x T x D a tile, two of them for the position scores.
m and l are kept apart for the backward pass: the log-sum-exp m + log l would lose l where a row
sees nothing and m is -1e30, and the last bits of P elsewhere.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from xlnet_fast.kernels.pallas import tile_ops as ops
from xlnet_fast.kernels.pallas.operands import (
    Floats,
    Integers,
    Options,
    Table,
    compiler_params,
    cost,
    moved,
    rows_spec,
    specs,
    statistics_spec,
)


def _kernel(
    x: Floats,
    r: Table,
    y: Integers,
    out: Any,  # (1, 1, T, D)
    statistics: Any,  # (1, 1, 2, T), m and l
    largest: Any,  # (T, 1) m
    total: Any,  # (T, 1) l
    average: Any,  # (T, D) A
    *,
    o: Options,
) -> None:
    b, n, i, j = (pl.program_id(axis) for axis in range(4))

    @pl.when(j == 0)
    def _begin() -> None:
        largest[...] = jnp.full_like(largest, -jnp.inf)
        total[...] = jnp.zeros_like(total)
        average[...] = jnp.zeros_like(average)

    @pl.when(ops.is_seen(i, j, o) if o.may_leave_out else j >= 0)
    def _meet_keys() -> None:
        s = ops.scores(x, r, y, i, j, o)  # [T, T]
        before = largest[...]
        largest[...] = jnp.maximum(before, jnp.max(s, axis=1, keepdims=True))
        shrink = jnp.exp(before - largest[...])
        p = jnp.exp(s - largest[...])
        total[...] = shrink * total[...] + jnp.sum(p, axis=1, keepdims=True)
        if o.threshold:
            p = p * ops.dropout(y, b, n, i, j, o)
        v = ops.keys_of(x.v, x.v_memory, j, o)
        average[...] = shrink * average[...] + ops.product(
            p.astype(v.dtype), v, ops.ROWS_BY_COLUMNS
        )

    @pl.when(j == o.key_tiles - 1)
    def _end() -> None:
        out[0, 0] = (average[...] / total[...]).astype(out.dtype)
        statistics[0, 0, 0:1] = ops.as_row(largest[...])
        statistics[0, 0, 1:2] = ops.as_row(total[...])


def forward(x: Floats, y: Integers, o: Options) -> tuple[jax.Array, jax.Array]:
    """Output (B, N, I, D) in the dtype of q, and its rows' m and l, (B, N, 2, I) in fp32."""
    batch, heads, rows, dim = x.q.shape

    def ids(b: Any, n: Any, i: Any, j: Any) -> tuple[Any, Any, Any, Any]:
        return b, n, i, j

    floats, table, integers = specs(x, y, o, ids)
    m = moved(o, x, y)
    of_row_tile = 2 * m.tile + 2 * m.statistic + m.rows + o.key_tiles * (4 * m.tile + m.keys)
    call = pl.pallas_call(
        partial(_kernel, o=o),
        grid=(batch, heads, o.row_tiles, o.key_tiles),
        in_specs=[floats, table, integers],
        out_specs=[rows_spec(o, dim, ids), statistics_spec(o, 2, ids)],
        out_shape=[
            jax.ShapeDtypeStruct(x.q.shape, x.q.dtype),
            jax.ShapeDtypeStruct((batch, heads, 2, rows), jnp.float32),
        ],
        scratch_shapes=[
            pltpu.VMEM((o.tile, 1), jnp.float32),
            pltpu.VMEM((o.tile, 1), jnp.float32),
            pltpu.VMEM((o.tile, dim), jnp.float32),
        ],
        compiler_params=compiler_params(o, "parallel", "parallel", "parallel", "arbitrary"),
        cost_estimate=cost(o, x, 4, of_head=o.row_tiles * of_row_tile + m.biases),
        interpret=o.interpret,
        name="xlnet_rel_attention_forward",
    )
    out, statistics = call(x._replace(r=None), Table(x.r, x.r), y)
    return out, statistics
