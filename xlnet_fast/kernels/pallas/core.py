"""Relative attention of padded, heads-first operands as one differentiable JAX function."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from xlnet_fast.kernels.pallas.backward_kv import backward_kv
from xlnet_fast.kernels.pallas.backward_q import backward_q
from xlnet_fast.kernels.pallas.backward_tile import Saved
from xlnet_fast.kernels.pallas.forward import forward
from xlnet_fast.kernels.pallas.operands import Floats, Integers, Options

_Residuals = tuple[Floats, Integers, jax.Array, jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def attention(o: Options, x: Floats, y: Integers) -> jax.Array:
    """Output (B, N, I, D) in the dtype of q."""
    return forward(x, y, o)[0]


def _forward(o: Options, x: Floats, y: Integers) -> tuple[jax.Array, _Residuals]:
    out, statistics = forward(x, y, o)
    return out, (x, y, out, statistics)


def _backward(o: Options, residuals: _Residuals, d_out: jax.Array) -> tuple[Floats, None]:
    x, y, out, statistics = residuals
    products = out.astype(jnp.float32) * d_out.astype(jnp.float32)
    saved = Saved(d_out, statistics, jnp.sum(products, axis=3)[:, :, None])
    dq, dr, d_biases, delta = backward_q(x, y, saved, o)
    dk, dv = backward_kv(x, y, saved._replace(delta=delta), o)
    memory = o.apart_tiles * o.tile
    gradients = Floats(
        q=dq,
        k=dk[:, :, memory:],
        v=dv[:, :, memory:],
        k_memory=dk[:, :, :memory] if memory else None,
        v_memory=dv[:, :, :memory] if memory else None,
        r=dr.astype(x.r.dtype),
        biases=d_biases.astype(x.biases.dtype),
    )
    return gradients, None


attention.defvjp(_forward, _backward)
