"""Backward pass by rows: the gradients of q, of the biases and of r.

    dq_w += dS k,  dq_r += unskew(dS) r,  dr += unskew(dS)^T q_r
    dc += sum of dS where the segments differ,  dq = dq_w + dq_r + dc (seg_embed_1 - seg_embed_0)

The gradient of a whole table of r stays in VMEM while all rows that read it go by, and is written
once: nothing is added in main memory. Nine products of T x T x D a tile.

D comes in as dO . out, whose out is rounded to the dtype of q. The exact sum is kept as well: it
mends dc, which has one number a row, and serves the kernel that owns keys.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from xlnet_fast.kernels.pallas import tile_ops as ops
from xlnet_fast.kernels.pallas.backward_tile import (
    Saved,
    made_again,
    saved_specs,
    score_gradients,
)
from xlnet_fast.kernels.pallas.operands import (
    LANES,
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
    saved: Saved,
    dq: Any,  # (1, 1, T, D)
    dr: Any,  # (1, 1, I + J, D)
    d_biases: Any,  # (1, 1, 1, 2 or 4, D), the part of these rows
    delta: Any,  # (1, 1, 1, T), the exact D
    dq_w: Any,  # (T, D)
    dq_r: Any,  # (T, D)
    dc: Any,  # (T, 1)
    p_differing: Any,  # (T, 1), sum of P where the segments differ
    exact: Any,  # (T, 1), sum of P Z dP
    *,
    o: Options,
    one_table: bool,  # whether the heads share r
) -> None:
    g, n, c, i, j = (pl.program_id(axis) for axis in range(5))
    begins_batch = (c == 0) & (i == 0) & (j == 0)

    @pl.when(begins_batch & (n == 0) if one_table else begins_batch)
    def _begin_table() -> None:
        dr[...] = jnp.zeros_like(dr)

    @pl.when(j == 0)
    def _begin_rows() -> None:
        for total in (dq_w, dq_r, dc, p_differing, exact):
            total[...] = jnp.zeros_like(total)

    @pl.when(ops.is_seen(i, j, o) if o.may_leave_out else j >= 0)
    def _meet_keys() -> None:
        place = (g * (o.batch // o.groups) + c, n, i, j)
        tile = made_again(x, r, y, saved, place, o)
        exact[...] += jnp.sum(tile.p * tile.dp, axis=1, keepdims=True)
        ds = score_gradients(tile, saved, o)  # [T, T]
        if o.segmented:
            differ = ops.segments_differ(y, o)
            dc[...] += jnp.sum(jnp.where(differ, ds, 0.0), axis=1, keepdims=True)
            p_differing[...] += jnp.sum(jnp.where(differ, tile.p, 0.0), axis=1, keepdims=True)
        k = ops.keys_of(x.k, x.k_memory, j, o)
        dq_w[...] += ops.product(ds.astype(k.dtype), k, ops.ROWS_BY_COLUMNS)
        ds_by_r = ops.unskew(ds).astype(k.dtype)  # [T, 2T]
        q_r = ops.with_bias(x, 1)
        first = (j - i + o.row_tiles - 1) * o.tile
        for half, block in enumerate(r):
            ds_half = ds_by_r[:, half * o.tile : (half + 1) * o.tile]
            dq_r[...] += ops.product(ds_half, block[0, 0], ops.ROWS_BY_COLUMNS)
            rows = pl.ds(pl.multiple_of(first + half * o.tile, o.tile), o.tile)
            dr[0, 0, rows] += ops.product(ds_half, q_r, ops.COLUMNS_BY_COLUMNS)

    @pl.when(j == o.key_tiles - 1)
    def _end_rows() -> None:
        sums = d_biases.at[0, 0, 0]
        sums[0:1] = jnp.sum(dq_w[...], axis=0, keepdims=True)
        sums[1:2] = jnp.sum(dq_r[...], axis=0, keepdims=True)
        gradient = dq_w[...] + dq_r[...]
        if o.segmented:
            error = ops.as_column(saved.delta[0, 0]) - exact[...]
            weight = dc[...] + o.scale * error * p_differing[...]
            of_segments = weight * x.biases[0, 3:4].astype(jnp.float32)  # [T, D]
            gradient += of_segments
            sums[2:3] = jnp.sum(of_segments, axis=0, keepdims=True)
            q_s = ops.with_bias(x, 2).astype(jnp.float32)
            sums[3:4] = jnp.sum(weight * q_s, axis=0, keepdims=True)
        dq[0, 0] = gradient.astype(dq.dtype)
        delta[0, 0] = ops.as_row(exact[...])


def backward_q(
    x: Floats, y: Integers, saved: Saved, o: Options
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Gradients of q in its dtype, and of r and the biases in fp32, shapes as in ``Floats``.

    The last result is the exact D, (B, N, 1, I) in fp32.
    """
    batch, heads, _, dim = x.q.shape
    shared_by = batch // o.groups
    one_table = x.r.shape[1] == 1

    def ids(g: Any, n: Any, c: Any, i: Any, j: Any) -> tuple[Any, Any, Any, Any]:
        return g * shared_by + c, n, i, j

    def parts(g: Any, n: Any, c: Any, i: Any, j: Any) -> tuple[Any, ...]:
        return g * shared_by + c, n, i, 0, 0

    def table_of(g: Any, n: Any, c: Any, i: Any, j: Any) -> tuple[Any, ...]:
        return g, 0 if one_table else n, 0, 0

    floats, table, integers = specs(x, y, o, ids)
    m = moved(o, x, y)
    sums = m.biases * 4 // x.biases.dtype.itemsize
    of_row_tile = 3 * m.tile + 4 * m.statistic + m.rows + sums
    of_row_tile += o.key_tiles * (4 * m.tile + m.keys)
    gradient_of_r = 4 * o.groups * x.r.shape[1] * x.r.shape[2] * max(dim, LANES)
    once = gradient_of_r + o.groups * heads * m.biases
    bias_parts = (batch, heads, o.row_tiles, *x.biases.shape[1:])
    of_heads = "arbitrary" if one_table else "parallel"
    call = pl.pallas_call(
        partial(_kernel, o=o, one_table=one_table),
        grid=(o.groups, heads, shared_by, o.row_tiles, o.key_tiles),
        in_specs=[floats, table, integers, saved_specs(o, dim, ids)],
        out_specs=[
            rows_spec(o, dim, ids),
            pl.BlockSpec((1, 1, *x.r.shape[2:]), table_of, pipeline_mode=pl.Buffered(1)),
            pl.BlockSpec((1, 1, 1, *bias_parts[3:]), parts),
            statistics_spec(o, 1, ids),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(x.q.shape, x.q.dtype),
            jax.ShapeDtypeStruct(x.r.shape, jnp.float32),
            jax.ShapeDtypeStruct(bias_parts, jnp.float32),
            jax.ShapeDtypeStruct(saved.delta.shape, jnp.float32),
        ],
        scratch_shapes=[
            *[pltpu.VMEM((o.tile, dim), jnp.float32)] * 2,
            *[pltpu.VMEM((o.tile, 1), jnp.float32)] * 3,
        ],
        compiler_params=compiler_params(
            o, "parallel", of_heads, "arbitrary", "arbitrary", "arbitrary"
        ),
        cost_estimate=cost(o, x, 9, of_head=o.row_tiles * of_row_tile, once=once),
        interpret=o.interpret,
        name="xlnet_rel_attention_backward_q",
    )
    dq, dr, d_biases, delta = call(x._replace(r=None), Table(x.r, x.r), y, saved)
    return dq, dr, jnp.sum(d_biases, axis=(0, 2)), delta
