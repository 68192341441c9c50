"""The Pallas kernels as functions of torch tensors, with gradients: interpreted, or on a TPU.

So the checks, problems and oracles of the other backends serve for these kernels, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor

from xlnet_fast.kernels import pallas
from xlnet_fast.masks import AttentionMask

ON_TPU = jax.default_backend() == "tpu"
"""Whether JAX runs on a TPU; there the kernels are compiled, and nothing is interpreted."""
TILE = 128 if ON_TPU else 16
"""Of the tests: the smallest, so that few rows and keys are several tiles."""
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""For the CPU. Compiling is nearly all of the time that a small test takes."""


def rel_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor,
    r_w_bias: Tensor,
    r_r_bias: Tensor,
    *,
    k_memory: Tensor | None = None,
    v_memory: Tensor | None = None,
    r_s_bias: Tensor | None = None,
    seg_embed: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """As ``ops.rel_attention``; ``tile`` and ``interpret`` may be given."""
    operands = {
        "q": q, "k": k, "v": v, "r": r, "r_w_bias": r_w_bias, "r_r_bias": r_r_bias,
        "k_memory": k_memory, "v_memory": v_memory, "r_s_bias": r_s_bias, "seg_embed": seg_embed,
    }  # fmt: skip
    return _through(pallas.rel_attention, operands, options)[0]


def two_stream_attention(
    q_h: Tensor,
    q_g: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor,
    r_w_bias: Tensor,
    r_r_bias: Tensor,
    *,
    k_memory: Tensor | None = None,
    v_memory: Tensor | None = None,
    r_s_bias: Tensor | None = None,
    seg_embed: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, ...]:
    """As ``ops.two_stream_attention``."""
    operands = {
        "q_h": q_h, "q_g": q_g, "k": k, "v": v, "r": r, "r_w_bias": r_w_bias, "r_r_bias": r_r_bias,
        "k_memory": k_memory, "v_memory": v_memory, "r_s_bias": r_s_bias, "seg_embed": seg_embed,
    }  # fmt: skip
    return _through(pallas.two_stream_attention, operands, options)


def to_jax(x: Tensor) -> jax.Array:
    """The same numbers, in int32 where they were in int64."""
    if x.dtype == torch.bfloat16:
        return jnp.asarray(x.detach().float().numpy(), jnp.bfloat16)
    return jnp.asarray(x.detach().contiguous().numpy())


def to_torch(x: jax.Array) -> Tensor:
    """The same numbers; bfloat16 stays."""
    if x.dtype == jnp.bfloat16:
        return torch.from_numpy(np.array(x.astype(jnp.float32))).bfloat16()
    return torch.from_numpy(np.array(x))


def translated(options: dict[str, Any]) -> dict[str, Any]:
    """Options of an op of ours as keywords of the JAX function."""
    options = {"tile": TILE, "interpret": not ON_TPU, **options}
    mask = options.pop("mask", None) or AttentionMask()
    parts = {name: value for name, value in vars(mask).items() if name != "see_self"}
    options |= parts | ({} if "segments" in options else {"see_self": mask.see_self})
    if isinstance(seed := options.get("seed"), Tensor):
        options["seed"] = int(seed)
    return {
        name: to_jax(x) if isinstance(x, Tensor) else x
        for name, x in options.items()
        if x is not None
    }


def _through(
    function: Callable[..., Any], operands: dict[str, Tensor | None], options: dict[str, Any]
) -> tuple[Tensor, ...]:
    given = {name: x for name, x in operands.items() if x is not None}
    keywords = translated(options)

    def of_operands(*values: jax.Array) -> tuple[jax.Array, ...]:
        result = function(**dict(zip(given, values, strict=True)), **keywords)
        return result if isinstance(result, tuple) else (result,)

    return _Differentiable.apply(of_operands, *given.values())


class _Differentiable(torch.autograd.Function):
    """A JAX function of arrays among torch's, with JAX's gradients."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], *tensors: Tensor) -> tuple[Tensor, ...]:
        values = [to_jax(x) for x in tensors]
        if not any(ctx.needs_input_grad[1:]):
            return tuple(map(to_torch, _quickly(function, *values)))
        outs, ctx.pull_back = _quickly(lambda *x: jax.vjp(function, *x), *values)
        return tuple(map(to_torch, outs))

    @staticmethod
    def backward(ctx: Any, *d_outs: Tensor) -> tuple[Tensor | None, ...]:
        grads = _quickly(lambda pull_back, *d: pull_back(d), ctx.pull_back, *map(to_jax, d_outs))
        return None, *map(to_torch, grads)


def _quickly(function: Callable[..., Any], *arguments: Any) -> Any:
    return jax.jit(function, compiler_options=None if ON_TPU else QUICK)(*arguments)
