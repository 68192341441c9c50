"""Backward pass by keys: the gradients of k and v, of the memory's as of the current ones.

    dv += (Z P)^T dO,  dk += dS^T q_w

For each tile of keys all tiles of rows. Six products of T x T x D a tile.
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
    Floats,
    Integers,
    Options,
    Table,
    compiler_params,
    cost,
    moved,
    specs,
)


def _kernel(
    x: Floats,
    r: Table,
    y: Integers,
    saved: Saved,
    dk: Any,  # (1, 1, T, D)
    dv: Any,  # (1, 1, T, D)
    dk_sum: Any,  # (T, D)
    dv_sum: Any,  # (T, D)
    *,
    o: Options,
) -> None:
    b, n, j, i = (pl.program_id(axis) for axis in range(4))

    @pl.when(i == 0)
    def _begin() -> None:
        dk_sum[...] = jnp.zeros_like(dk_sum)
        dv_sum[...] = jnp.zeros_like(dv_sum)

    @pl.when(ops.is_seen(i, j, o) if o.may_leave_out else i >= 0)
    def _meet_rows() -> None:
        tile = made_again(x, r, y, saved, (b, n, i, j), o)
        ds = score_gradients(tile, saved, o)  # [T, T]
        d_out, q_w = saved.d_out[0, 0], ops.with_bias(x, 0)
        dv_sum[...] += ops.product(tile.kept_p.astype(d_out.dtype), d_out, ops.COLUMNS_BY_COLUMNS)
        dk_sum[...] += ops.product(ds.astype(q_w.dtype), q_w, ops.COLUMNS_BY_COLUMNS)

    @pl.when(i == o.row_tiles - 1)
    def _end() -> None:
        dk[0, 0] = dk_sum[...].astype(dk.dtype)
        dv[0, 0] = dv_sum[...].astype(dv.dtype)


def backward_kv(x: Floats, y: Integers, saved: Saved, o: Options) -> tuple[jax.Array, jax.Array]:
    """Gradients of k and v, (B, N, J, D) each: first those of a memory apart."""
    batch, heads, _, dim = x.q.shape
    shape = (batch, heads, o.key_tiles * o.tile, dim)

    def ids(b: Any, n: Any, j: Any, i: Any) -> tuple[Any, Any, Any, Any]:
        return b, n, i, j

    floats, table, integers = specs(x, y, o, ids)
    m = moved(o, x, y)
    of_key_tile = 4 * m.tile + m.keys + o.row_tiles * (4 * m.tile + 3 * m.statistic + m.rows)
    keys_spec = pl.BlockSpec((1, 1, o.tile, dim), lambda b, n, j, i: (b, n, j, 0))
    call = pl.pallas_call(
        partial(_kernel, o=o),
        grid=(batch, heads, o.key_tiles, o.row_tiles),
        in_specs=[floats, table, integers, saved_specs(o, dim, ids)],
        out_specs=[keys_spec, keys_spec],
        out_shape=[jax.ShapeDtypeStruct(shape, x.k.dtype)] * 2,
        scratch_shapes=[pltpu.VMEM((o.tile, dim), jnp.float32)] * 2,
        compiler_params=compiler_params(o, "parallel", "parallel", "parallel", "arbitrary"),
        cost_estimate=cost(o, x, 6, of_head=o.key_tiles * of_key_tile + m.biases),
        interpret=o.interpret,
        name="xlnet_rel_attention_backward_kv",
    )
    dk, dv = call(x._replace(r=None), Table(x.r, x.r), y, saved)
    return dk, dv
